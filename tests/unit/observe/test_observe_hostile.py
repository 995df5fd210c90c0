"""Observing and planning survive whatever a dump holds: objects that no API server would have let in."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from meshscrape.errors import InputError
from meshscrape.observe import observe
from meshscrape.observe.observation_document import observation_document
from meshscrape.plan.model import Intent
from meshscrape.plan.planner import plan
from meshscrape.plan.render.diff import plan_text, summary
from meshscrape.plan.render.files import plan_files
from meshscrape.plan.render.kustomize import kustomize_files
from support.examples import CLUSTERS
from support.objects import cluster, observed

_JUNK: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1, 15092, "", "x", "*", "a: [", "{", [], [None], ["x"], {}, {"x": None}, [[]], 1.5]
)
_CLUSTERS = {name: build() for name, build in CLUSTERS.items()}


def _places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from _places(value, (*path, key))


_PLACES = {
    name: [path for path in _places(parts) if len(path) > 2 and path[1:] not in ((path[1], "kind"),)]
    for name, parts in _CLUSTERS.items()
}


@st.composite
def broken_clusters(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A cluster with some of its values replaced by junk."""
    name = draw(st.sampled_from(sorted(_CLUSTERS)))
    parts = copy.deepcopy(_CLUSTERS[name])
    for path in draw(st.lists(st.sampled_from(_PLACES[name]), min_size=1, max_size=3)):
        target: Any = parts
        try:
            for key in path[:-1]:
                target = target[key]
            target[path[-1]] = copy.deepcopy(draw(_JUNK))
        except (KeyError, IndexError, TypeError):
            continue
    return parts


@settings(max_examples=40, deadline=None)
@given(broken_clusters())
def test_broken_objects_do_not_crash(parts: list[dict[str, Any]]) -> None:
    """Any value may be anything: the result is an observation that is JSON, or one line for the user."""
    try:
        found = observed(parts)
    except InputError:
        return
    json.dumps(observation_document(found))


@settings(max_examples=40, deadline=None)
@given(broken_clusters(), st.sampled_from(["auto", "native", "bootstrap", "legacy"]))
def test_broken_objects_give_a_plan_or_one_line(parts: list[dict[str, Any]], mode: Any) -> None:
    """Any value may be anything: there is a plan that can be shown and written, or one line for the user."""
    try:
        objects = cluster(parts)
        intent = Intent(mode=mode, inject=True, network_policy=True)
        found = plan(observe(objects), objects, intent)
    except InputError:
        return
    assert plan_text(found).splitlines()[-1] == summary(found)
    kustomize_files(found, "../base")
    plan_files(found)
