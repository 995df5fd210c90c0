"""Count the outcome of every chosen workload, for the plan's last line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meshscrape.kube.objects import Ref

# Codes of notes about chosen workloads without a proxy that a plan could secure.
LEFT_ALONE = frozenset({"ambient", "host-network", "opted-out", "no-envoy", "pods-unknown"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """The chosen workloads, each in exactly one group. `removed`: meshscrape's changes are taken back."""

    secured: tuple[Ref, ...] = ()
    unchanged: tuple[Ref, ...] = ()
    left: tuple[Ref, ...] = ()
    held: tuple[Ref, ...] = ()
    refused: tuple[str, ...] = ()
    removed: tuple[Ref, ...] = ()

    @property
    def finished(self) -> bool:
        """Return whether everything chosen is already as it is wanted."""
        return not (self.secured or self.removed or self.left or self.held or self.refused)


def outcome_of(
    targets: Sequence[Ref],
    *,
    changed: frozenset[Ref],
    held: frozenset[Ref],
    left: Sequence[Ref],
    refused: Sequence[str],
) -> Outcome:
    """Return the outcome of a plan for `targets`; it changes the workloads in `changed`."""
    free = [ref for ref in targets if ref not in held]
    return Outcome(
        secured=tuple(ref for ref in free if ref in changed),
        unchanged=tuple(ref for ref in free if ref not in changed),
        left=tuple(left),
        held=tuple(ref for ref in targets if ref in held),
        refused=tuple(refused),
    )
