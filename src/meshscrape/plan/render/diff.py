"""Render a plan as text: a unified YAML diff per change, with its reason and what it restarts."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence

from meshscrape.kube.objects import Object, Ref, as_mapping, stable
from meshscrape.kube.yaml_text import dump
from meshscrape.plan.model import Change, Gate, Note, Phase, Plan
from meshscrape.plan.outcome import Outcome

_CONTEXT = 3
# A longer text (lines) is cut to its beginning.
_LONG = 100
_BEGINNING = 12
# How many objects are named when several share a note.
_SHOWN = 5
_HEADINGS: dict[Phase, str] = {
    "injection": "Injection: workloads join the mesh",
    "credentials": "Credentials: scrapers get a certificate",
    "listeners": "Listeners: metrics over mutual TLS",
    "scrape": "Scraping: over mutual TLS instead of plaintext",
    "hardening": "Hardening: plaintext ports close",
    "removal": "Removal: replaced objects are deleted",
}
_INVERSE_HEADINGS: dict[Phase, str] = {
    "hardening": "Hardening is taken back: plaintext ports open",
    "scrape": "Scraping is taken back: plaintext jobs read the pods again",
    "listeners": "Listeners are taken back: secure ports close",
    "credentials": "Credentials are taken back: scrapers lose their certificate",
    "injection": "Injection is taken back: workloads leave the mesh",
    "removal": "Removal: meshscrape's own objects are deleted",
}
_COLOURS = {"+": "32", "-": "31", "@": "36", "#": "1"}


def plan_text(plan: Plan, *, colour: bool = False) -> str:
    """Return the whole plan: phases with their changes, gates, notes, and a summary line at the end."""
    lines = [line for phase in plan.phases for line in _phase(plan, phase)]
    lines += [line for gate in plan.gates for line in _gate(gate)]
    lines += _chart_values(plan)
    lines += _notes(plan.notes)
    lines.append(summary(plan))
    return "\n".join(_coloured(line) if colour else line for line in lines) + "\n"


def summary(plan: Plan) -> str:
    """Return the last line: the number of changes, and the outcome of every chosen workload.

    `Plan: 2 to create, 3 to update, 0 to delete; restarts 3; 4 secured, 1 held back (Deployment.apps a/b).`
    It says "Nothing to do." only if everything chosen is already secured.
    """
    count = dict.fromkeys(("create", "update", "delete"), 0)
    for change in plan.changes:
        count[change.action] += 1
    outcome = _outcome(plan.outcome)
    if not plan.changes:
        return "Nothing to do." if plan.outcome.finished else f"Nothing planned; {outcome}."
    restarts = len({restart for change in plan.changes for restart in change.restarts})
    counts = ", ".join(f"{number} to {action}" for action, number in count.items())
    return f"Plan: {counts}; restarts {restarts or 'nothing'}{'; ' if outcome else ''}{outcome}."


def _outcome(outcome: Outcome) -> str:
    parts = [
        f"{len(refs)} {word}"
        for word, refs in (
            ("secured", outcome.secured),
            ("taken back", outcome.removed),
            ("unchanged", outcome.unchanged),
        )
        if refs
    ]
    parts += [
        f"{len(refs)} {word} ({_shown(refs)})"
        for word, refs in (
            ("left alone", outcome.left), ("held back", outcome.held), ("refused", outcome.refused),
        )
        if refs
    ]  # fmt: skip
    return ", ".join(parts)


def change_diff(change: Change) -> list[str]:
    """Return the unified diff of one change's YAML, without status and the fields that a cluster adds.

    Long texts in a new ConfigMap are cut, with a line that says so: the hundreds of lines of listeners,
    repeated per namespace, would hide what the user must decide on.
    """
    before = _lines(change.before)
    after = _lines(change.after if before else _abridged(change.after))
    name = _path(change.ref)
    return list(
        difflib.unified_diff(
            before,
            after,
            f"a/{name}" if before else "/dev/null",
            f"b/{name}" if after else "/dev/null",
            lineterm="",
            n=_CONTEXT,
        )
    )


def _phase(plan: Plan, phase: Phase) -> Iterator[str]:
    changes = [change for change in plan.changes if change.phase == phase]
    if not changes:
        return
    headings = _INVERSE_HEADINGS if plan.inverse else _HEADINGS
    yield f"## {plan.phases.index(phase) + 1}. {headings[phase]}"
    yield ""
    for change in changes:
        yield f"# {change.action} {change.ref}"
        yield f"#   why: {change.reason}"
        restarts = ", ".join(change.restarts) or "nothing"
        yield f"#   restarts: {restarts}"
        yield from change_diff(change)
        yield ""


def _gate(gate: Gate) -> Iterator[str]:
    state = "wait until the earlier phases have taken effect" if gate.planned else "held back"
    yield f"# gate: {gate.phase} of {_shown(gate.workloads)}: {state}"
    for missing in gate.waits_for:
        yield f"#   {'waits for' if gate.planned else 'missing'}: {missing.text}"
        yield f"#     {missing.remedy}"
    yield ""


def _chart_values(plan: Plan) -> Iterator[str]:
    """Yield the values to set in Istio's chart, as comments: they are no change of the plan."""
    for revision, values in plan.chart_values.items():
        yield f"# values for Istio's chart, revision {revision or 'default'} (IstioOperator: in spec.values):"
        yield from (f"#   {line}".rstrip() for line in values.splitlines())
        yield ""


def _notes(notes: Iterable[Note]) -> Iterator[str]:
    """Yield the notes; equal notes about several objects become one."""
    grouped: dict[tuple[bool, str, str], list[Ref]] = {}
    for note in notes:
        refs = grouped.setdefault((note.refused, note.text, note.remedy), [])
        refs.extend([note.ref] if note.ref else [])
    for (refused, text, remedy), refs in grouped.items():
        yield f"# {'refused' if refused else 'note'}: {f'{_shown(refs)}: ' if refs else ''}{text}"
        yield f"#   {remedy}"
        yield ""


def _shown(refs: Sequence[Ref | str]) -> str:
    names = [str(ref) for ref in refs[:_SHOWN]]
    if len(refs) > _SHOWN:
        names.append(f"{len(refs) - _SHOWN} more")
    return ", ".join(names)


def _lines(data: Object | None) -> list[str]:
    return dump(stable(data)).splitlines() if data is not None else []


def _abridged(data: Object | None) -> Object | None:
    if data is None or data.get("kind") != "ConfigMap":
        return data
    texts = as_mapping(data.get("data"))
    return {**data, "data": {key: _cut(text) for key, text in texts.items()}}


def _cut(text: object) -> object:
    lines = str(text).splitlines()
    if len(lines) <= _LONG:
        return text
    left = f"... {len(lines) - _BEGINNING} more lines: `meshscrape render` writes them all"
    return "\n".join([*lines[:_BEGINNING], left, ""])


def _path(ref: Ref) -> str:
    kind = f"{ref.kind}.{ref.group}" if ref.group else ref.kind
    return "/".join(part for part in (ref.namespace, kind, ref.name) if part)


def _coloured(line: str) -> str:
    code = _COLOURS.get(line[:1])
    return f"\x1b[{code}m{line}\x1b[0m" if code else line
