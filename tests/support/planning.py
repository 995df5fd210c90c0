"""Plans of small clusters, and what every plan must keep."""

from __future__ import annotations

from typing import Any

import yaml

from meshscrape.kube.manifests import load_manifests
from meshscrape.kube.objects import Inventory, Manifest, Ref, load_inventory
from meshscrape.observe import observe
from meshscrape.plan.holding import outlook
from meshscrape.plan.judge import Result, ScrapeVerdict, judge, new_errors
from meshscrape.plan.model import PHASES, Change, Intent, Plan, revert
from meshscrape.plan.planner import plan
from support.defaulting import defaulted
from support.schemas import known, problems
from support.upstream import CRDS, SAMPLES


def sample(*names: str) -> Inventory:
    """The upstream samples of these names."""
    found: list[Manifest] = []
    for name in names:
        with (SAMPLES / name).open() as lines:
            found += load_manifests(lines, name)
    return load_inventory(found)


def planned(inventory: Inventory, **intent: Any) -> Plan:
    """Observe and plan."""
    wanted = Intent(**intent)
    return plan(observe(inventory, istio_version=wanted.istio_version), inventory, wanted)


def settled(inventory: Inventory, **intent: Any) -> Plan:
    """Plan, and check what every plan must keep.

    Its order; nothing worse than before (`harm`); no changes in a second plan, also of what an API server
    gives back; the way back; valid objects.
    """
    found = planned(inventory, **intent)
    order = [PHASES.index(change.phase) for change in found.changes]
    assert order == sorted(order)
    assert harm(inventory, found, **intent) == []
    after = found.apply(inventory)
    for stored in (after, defaulted(after)):
        again = planned(stored, **intent)
        assert [_told(change) for change in again.changes] == []
    assert same(revert(found).apply(after), inventory)
    assert not [problem for change in found.changes for problem in _problems(change)]
    return found


def harm(inventory: Inventory, found: Plan, **intent: Any) -> list[str]:
    """What a plan makes worse: scrapes that are lost, doubled or uncertain, and new errors."""
    wanted = Intent(**intent)
    version = wanted.istio_version
    before = observe(inventory, istio_version=version)
    after = observe(outlook(inventory, found), istio_version=version)
    replaced = wanted.prometheus in ("addon", "operator")
    vouched = bool(wanted.scrapers)
    known = {_said(verdict) for verdict in judge(Result(before, before, vouched, replaced))}
    verdicts = judge(Result(before, after, vouched, replaced))
    worse = [_said(verdict) for verdict in verdicts if verdict.answer != "shown"]
    errors = [f"{pitfall.code} {pitfall.ref}" for pitfall in new_errors(before, after)]
    return [text for text in worse if text not in known] + errors


def _said(verdict: ScrapeVerdict) -> str:
    missing = ", ".join(missing.code for missing in verdict.missing)
    return f"{verdict.workload} by {verdict.job}: {verdict.answer}: {missing}"


def same(one: Inventory, other: Inventory) -> bool:
    """Whether two inventories hold equal data."""
    return {each.ref: each.data for each in one} == {each.ref: each.data for each in other}


def _told(change: Change) -> str:
    before, after = (yaml.safe_dump(each) for each in (change.before, change.after))
    return f"{change.action} {change.ref}: {change.reason}\n{before}\n->\n{after}"


def _problems(change: Change) -> list[str]:
    if change.after is None or not CRDS.is_dir() or not known(change.after):
        return []
    before = set(problems(change.before)) if change.before else set()
    return [each for each in problems(change.after) if each not in before]


def changed(found: Plan, kind: str, name: str = "") -> Any:
    """The object of this kind (and name) as the plan leaves it; fails unless there is exactly one."""
    latest = {c.ref: c.after for c in found.changes if c.ref.kind == kind and name in ("", c.ref.name)}
    assert len(latest) == 1, [str(change.ref) for change in found.changes]
    return next(iter(latest.values()))


def template(found: Plan, kind: str = "Deployment", name: str = "") -> Any:
    """The pod template of a changed workload."""
    return changed(found, kind, name)["spec"]["template"]


def annotations(found: Plan, kind: str = "Deployment", name: str = "") -> Any:
    """The annotations of a changed pod template."""
    return template(found, kind, name)["metadata"]["annotations"]


def proxy_config(found: Plan, kind: str = "Deployment", name: str = "") -> Any:
    """The data of `proxy.istio.io/config` of a changed pod template."""
    return yaml.safe_load(annotations(found, kind, name)["proxy.istio.io/config"])


def refs(found: Plan) -> list[tuple[str, str, str]]:
    """Phase, action and kind/name of every change, in order."""
    return [(each.phase, each.action, f"{each.ref.kind}/{each.ref.name}") for each in found.changes]


def notes(found: Plan) -> str:
    """All notes as one text."""
    return "\n".join(f"{note.ref}: {note.text}; {note.remedy}" for note in found.notes)


def ref(kind: str, name: str, namespace: str = "default", group: str = "apps") -> Ref:
    return Ref(group, kind, namespace, name)


def codes(found: Plan) -> set[str]:
    """The codes of all notes, and of what the gates wait for."""
    missing = {missing.code for gate in found.gates for missing in gate.waits_for}
    return {note.code for note in found.notes} | missing
