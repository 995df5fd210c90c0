"""What becomes of every chosen workload, for the plan's last line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meshscrape.kube.objects import Ref

# Notes about workloads that were chosen, and have no proxy whose ports a plan could secure.
LEFT_ALONE = frozenset({"ambient", "host-network", "opted-out", "no-envoy"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """The chosen workloads by what becomes of them; each is in one place."""

    secured: tuple[Ref, ...] = ()
    unchanged: tuple[Ref, ...] = ()
    left: tuple[Ref, ...] = ()
    held: tuple[Ref, ...] = ()
    refused: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Return whether everything chosen is secured already."""
        return not (self.secured or self.left or self.held or self.refused)


def outcome_of(
    targets: Sequence[Ref],
    *,
    changed: frozenset[Ref],
    held: frozenset[Ref],
    left: Sequence[Ref],
    refused: Sequence[str],
) -> Outcome:
    """Return the outcome of a plan for `targets`; `changed` are those that it changes."""
    free = [ref for ref in targets if ref not in held]
    return Outcome(
        secured=tuple(ref for ref in free if ref in changed),
        unchanged=tuple(ref for ref in free if ref not in changed),
        left=tuple(left),
        held=tuple(ref for ref in targets if ref in held),
        refused=tuple(refused),
    )
