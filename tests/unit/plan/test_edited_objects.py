"""Changes that are made whole or not at all, one inside another."""

from __future__ import annotations

import pytest

from meshscrape.errors import InputError
from meshscrape.istio.names import MANAGED_BY
from meshscrape.kube.objects import Ref
from meshscrape.plan.edited_objects import EditedObjects, Mutable, covers
from meshscrape.plan.model import MANAGER, Refused
from support.objects import cluster, config_map
from support.planning import ref

NO = Refused("no", "it cannot be", "leave it")
NAMES = ("outer", "inner", "late")


def _ref(name: str) -> Ref:
    return ref("ConfigMap", name, "istio-system", group="")


def draft() -> EditedObjects:
    """Three ConfigMaps, unchanged."""
    return EditedObjects(cluster(*(config_map(name, {"value": "old"}) for name in NAMES)))


def write(objects: EditedObjects, name: str, value: str) -> None:
    """Change one of them."""
    objects.edit(_ref(name), lambda item: item["data"].update(value=value), "a test")


def values(objects: EditedObjects) -> dict[str, str]:
    """What each of them says now."""
    found = {name: objects.get(_ref(name)) for name in NAMES}
    return {name: item["data"]["value"] for name, item in found.items() if item is not None}


def nested(objects: EditedObjects, inner: Refused | None, outer: Refused | None) -> Refused | None:
    """A change inside another one, each ending as told; another change follows the inner one."""

    def within() -> Refused | None:
        # The same object twice, and one of the outer change: what is undone is exactly the inner part.
        write(objects, "inner", "half")
        write(objects, "inner", "new")
        write(objects, "outer", "inner's")
        return inner

    def around() -> Refused | None:
        write(objects, "outer", "new")
        assert objects.whole(within) is inner
        write(objects, "late", "new")
        return outer

    return objects.whole(around)


@pytest.mark.parametrize(
    ("inner", "outer", "left"),
    [
        (None, None, {"outer": "inner's", "inner": "new", "late": "new"}),
        (NO, None, {"outer": "new", "inner": "old", "late": "new"}),
        (None, NO, dict.fromkeys(NAMES, "old")),
        (NO, NO, dict.fromkeys(NAMES, "old")),
    ],
    ids=["both", "outer alone", "inner alone", "neither"],
)
def test_a_refusal_undoes_its_own_part_with_all_inside(
    inner: Refused | None, outer: Refused | None, left: dict[str, str]
) -> None:
    """An inner refusal leaves the outer changes; an outer one takes the inner changes along."""
    objects = draft()
    assert nested(objects, inner, outer) is outer
    assert values(objects) == left
    assert {change.ref.name for change in objects.changes()} == {
        name for name, value in left.items() if value != "old"
    }


def test_a_mistake_of_the_user_refuses_and_any_other_error_passes() -> None:
    """Both undo the outer change and the inner one."""
    for error in (InputError("it is not", code="odd"), KeyError("a fault of ours")):
        objects = draft()

        def fail(objects: EditedObjects = objects, error: Exception = error) -> Refused | None:
            write(objects, "outer", "new")
            assert nested(objects, None, None) is None
            raise error

        if isinstance(error, InputError):
            refused = objects.whole(fail)
            assert refused is not None and refused.code == "unreadable"
        else:
            with pytest.raises(KeyError):
                objects.whole(fail)
        assert set(values(objects).values()) == {"old"}
        assert objects.changes() == ()


def test_absent_object_is_not_changed() -> None:
    """An edit of a missing object makes no difference, and says so."""
    objects = draft()

    def fail(item: Mutable) -> None:
        raise AssertionError(item)

    assert objects.edit(_ref("missing"), fail, "a test") is False
    objects.delete(_ref("missing"), "a test")
    assert (objects.changes(), objects.edits) == ((), 0)


def test_own_object_that_needs_no_change_is_left_alone() -> None:
    """Others may have added fields, and the cluster may store another API version; else it is updated."""
    wanted = config_map("ours", {"value": "new"}, {MANAGED_BY: MANAGER})
    stored = config_map("ours", {"value": "new", "added": "x"}, {MANAGED_BY: MANAGER, "team": "a"})
    objects = EditedObjects(cluster(stored | {"immutable": True}))
    assert objects.ensure(wanted, "a test")
    assert (objects.changes(), objects.edits) == ((), 0)
    assert objects.ensure({**wanted, "data": {"value": "newer"}}, "a test")
    (change,) = objects.changes()
    assert change.after is not None
    assert change.after["data"]["value"] == "newer"
    assert change.after["metadata"]["labels"]["team"] == "a"


@pytest.mark.parametrize(
    ("found", "wanted", "expected"),
    [
        ({"apiVersion": "v1beta1", "a": 1}, {"apiVersion": "v1", "a": 1}, True),
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"b": 2}, {"a": 1}, False),
        ({"a": [{"b": 1, "c": 2}]}, {"a": [{"b": 1}]}, True),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ("a", {"a": 1}, False),
    ],
)
def test_one_object_covers_another(found: object, wanted: object, expected: bool) -> None:
    """Fields may be added, elements of lists may not; the version of the API does not count."""
    assert covers(found, wanted) is expected
