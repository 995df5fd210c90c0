"""Define the results of `observe` and `plan` for pipelines, one per code and object."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from meshscrape.istio.names import SUPPRESS
from meshscrape.kube import objects
from meshscrape.kube.objects import Inventory, Ref
from meshscrape.observe.model import Severity
from meshscrape.observe.observation import Observation

# From worst to harmless.
SEVERITIES: tuple[Severity, ...] = ("critical", "error", "warning", "info")
# A place as `load_manifests` writes it: a file, a line, and perhaps an item of a list.
_PLACE = re.compile(r"(.+):([0-9]+)(?:: items\[.*)?")


@dataclass(frozen=True, slots=True)
class PipelineResult:
    """One result: `ref` is the object that it is about, or None for the whole cluster.

    `file` and `line` (from 1) say where the object was read; empty and 0 when it comes from no file.
    `suppressed` names what suppressed it; empty if nothing did.
    """

    code: str
    severity: Severity
    ref: Ref | None
    text: str
    remedy: str
    file: str = ""
    line: int = 0
    suppressed: str = ""


@dataclass(frozen=True, slots=True)
class Suppression:
    """A code to ignore, for the object `target` only if it is given.

    `target` is NAMESPACE/NAME or NAME, or the same after KIND or KIND.GROUP and a space, as reports show it.
    """

    code: str
    target: str = ""

    def covers(self, result: PipelineResult) -> bool:
        """Return whether it suppresses the result."""
        return self.code == result.code and (not self.target or self.target in _names(result.ref))


def parse_suppression(text: str) -> Suppression:
    """Return the suppression that `CODE` or `CODE=OBJECT` spells."""
    code, _, target = text.partition("=")
    return Suppression(code.strip(), " ".join(target.split()))


def _names(ref: Ref | None) -> tuple[str, ...]:
    if ref is None:
        return ()
    title = f"{ref.namespace}/{ref.name}" if ref.namespace else ref.name
    return (title, f"{ref.kind} {title}", str(ref))


def pitfall_results(observation: Observation, inventory: Inventory) -> tuple[PipelineResult, ...]:
    """Return a result for each pitfall."""
    results = (
        PipelineResult(pitfall.code, pitfall.severity, pitfall.ref, pitfall.text, pitfall.remedy)
        for pitfall in observation.pitfalls
    )
    return tuple(placed(result, inventory) for result in results)


def placed(result: PipelineResult, inventory: Inventory) -> PipelineResult:
    """Return the result with the file and line of its object."""
    manifest = inventory.get(result.ref) if result.ref else None
    place = _PLACE.fullmatch(manifest.where) if manifest else None
    return replace(result, file=place[1], line=int(place[2])) if place else result


def suppressed(
    results: Iterable[PipelineResult], rules: Sequence[Suppression], inventory: Inventory, *, trust: bool
) -> tuple[PipelineResult, ...]:
    """Return the results; mark those that a rule or (with `trust`) the object's annotation suppresses."""
    return tuple(
        replace(result, suppressed=_suppressor(result, rules, inventory, trust)) for result in results
    )


def _suppressor(
    result: PipelineResult, rules: Sequence[Suppression], inventory: Inventory, trust: bool
) -> str:
    if any(rule.covers(result) for rule in rules):
        return "--suppress"
    manifest = inventory.get(result.ref) if trust and result.ref else None
    listed = objects.annotations(manifest.data).get(SUPPRESS, "") if manifest else ""
    codes = {code.strip() for code in str(listed).split(",")}
    return f"annotation {SUPPRESS}" if result.code in codes else ""


def fails(results: Iterable[PipelineResult], severity: Severity) -> bool:
    """Return whether a result that is not suppressed is of this severity or worse."""
    failing = SEVERITIES[: SEVERITIES.index(severity) + 1]
    return any(result.severity in failing for result in results if not result.suppressed)
