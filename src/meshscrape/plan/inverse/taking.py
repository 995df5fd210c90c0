"""Take single fields back from an object, and leave what others wrote there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio.names import PROXY_CONFIG_ANNOTATION, PROXY_CONTAINER
from meshscrape.kube.objects import Object, as_list, as_mapping, dig
from meshscrape.kube.yaml_text import load_text, rewrite
from meshscrape.plan.edited_objects import Mutable, clone
from meshscrape.plan.inverse.evidence import FieldPath
from meshscrape.plan.inverse.record import Overwritten

Test = Callable[[Any], bool]
# Mappings to remove when they become empty: the API server drops them, and no text needs them.
_PRUNED = ("annotations", "labels", "proxyMetadata", "proxy_metadata", "podMetadata", "infrastructure")


def anything(value: Any) -> bool:
    """Accept every value."""
    return True


def one_of(*values: str) -> Test:
    """Return a test that accepts these values."""
    return lambda value: value in values


class Taking:
    """Take fields of `data` back.

    A field is removed, or gets the value of the recorded `original`. Without an original, `written` decides:
    it returns whether meshscrape wrote the field at a path. It returns None if nothing tells; then the field
    is taken back, unless others have records (`recorded`), and gets the value of `overwritten` if that tells.
    A field that another manager wrote stays, and its name is added to `kept`.
    """

    def __init__(
        self,
        data: Mutable,
        original: Object | None,
        written: Callable[[FieldPath], bool | None],
        *,
        recorded: bool = False,
        overwritten: Overwritten | None = None,
    ) -> None:
        self.data = data
        self.overwritten = overwritten or Overwritten()
        self.recorded = recorded
        self.original = original
        self.written = written
        self.kept: list[str] = []

    def key(self, path: tuple[str, ...], key: str, ours: Test = anything, *, recorded: bool = False) -> None:
        """Take back the value of `key` in the mapping at `path`, if `ours` accepts it.

        With `recorded`, do so only if something shows that meshscrape wrote it.
        """
        holder = dig(self.data, *path)
        if not isinstance(holder, dict) or key not in holder or not ours(holder[key]):
            return
        if self.original is not None:
            before = dig(self.original, *path, key)
            if before is not None:
                holder[key] = clone(before)
                return
        elif not self._ours((*path, key), recorded=recorded):
            self.kept.append(key)
            return
        elif (value := self.overwritten.value((*path, key), holder[key])) is not None:
            holder[key] = value
            return
        del holder[key]
        self._prune(path)

    def ports(
        self, path: tuple[str, ...], key: str, ports: Iterable[str], everywhere: Iterable[str] = ()
    ) -> None:
        """Take ports out of a list in one text; `everywhere` is the list that meshscrape began with."""
        text, before = (dig(data, *path, key) for data in (self.data, self.original))
        taken = set(ports)
        if not taken & set(_parts(text)):
            return
        taken -= set(_parts(before))
        if self.original is None and not self._ours((*path, key)):
            self.kept.append(key)
            return
        left = [part for part in _parts(text) if part not in taken]
        holder = dig(self.data, *path)
        if before is None and set(left) <= set(everywhere):
            del holder[key]
            self._prune(path)
        elif len(left) != len(_parts(text)):
            holder[key] = ",".join(left)

    def proxy_config(
        self, path: tuple[str, ...], variables: Mapping[str, Test], fields: Mapping[str, Test] | None = None
    ) -> None:
        """Take variables and fields out of `proxy.istio.io/config` among the annotations at `path`."""
        text = dig(self.data, *path, PROXY_CONFIG_ANNOTATION)
        if not isinstance(text, str):
            return
        config = _mapping(text)
        if config is None:
            self.kept.append(PROXY_CONFIG_ANNOTATION)
            return
        before = dig(self.original, *path, PROXY_CONFIG_ANNOTATION)
        original = None if self.original is None else (_mapping(before) or {})
        written = self.written((*path, PROXY_CONFIG_ANNOTATION))
        inner = Taking(config, original, lambda _: written, recorded=self.recorded)
        for name, ours in variables.items():
            inner.key(("proxyMetadata",), name, ours)
            inner.key(("proxy_metadata",), name, ours)
        for name, ours in (fields or {}).items():
            inner.key((), name, ours)
        self.kept += inner.kept
        holder = dig(self.data, *path)
        if before is not None and original == config:
            holder[PROXY_CONFIG_ANNOTATION] = before
        elif config:
            holder[PROXY_CONFIG_ANNOTATION] = rewrite(text, config)
        else:
            del holder[PROXY_CONFIG_ANNOTATION]
            self._prune(path)

    def env(self, path: tuple[str, ...], names: Mapping[str, Test]) -> None:
        """Take variables out of the proxy's container in the pod specification at `path`."""
        for group in ("containers", "initContainers"):
            container = _named(dig(self.data, *path, group), PROXY_CONTAINER)
            if container is None:
                continue
            before = _named(dig(self.original, *path, group), PROXY_CONTAINER)
            place: FieldPath = (*path, group, ("name", PROXY_CONTAINER), "env")
            self._items(container, "env", names, as_list(as_mapping(before).get("env")), place)

    def list_env(self, path: tuple[str, ...], names: Mapping[str, Test]) -> None:
        """Take variables out of the list `env` of the mapping at `path`."""
        holder = dig(self.data, *path)
        if isinstance(holder, dict):
            before = as_list(dig(self.original, *path, "env"))
            self._items(holder, "env", names, before, (*path, "env"))

    def _items(
        self, holder: Mutable, key: str, names: Mapping[str, Test], before: list[Any], path: FieldPath
    ) -> None:
        for name, ours in names.items():
            item = _named(holder.get(key), name)
            if item is None or not ours(item.get("value")):
                continue
            theirs = _named(before, name)
            if theirs is not None:
                item.clear()
                item.update(clone(theirs))
            elif self.original is None and not self._ours((*path, ("name", name))):
                self.kept.append(name)
            else:
                holder[key] = [other for other in holder[key] if other is not item]
        if key in holder and not holder[key]:
            del holder[key]

    def item(self, path: tuple[str, ...], key: str, value: str, *, by: str = "name") -> None:
        """Take the item whose `by` is `value` out of the list `key` of the mapping at `path`."""
        holder = dig(self.data, *path)
        if isinstance(holder, dict):
            self._item(holder, key, value, by, as_list(dig(self.original, *path, key)), (*path, key))

    def mount(self, path: tuple[str, ...], volume: str) -> None:
        """Take the mounts of a volume out of all containers of the pod specification at `path`."""
        for group in ("containers", "initContainers"):
            for container in as_list(dig(self.data, *path, group)):
                before = _named(dig(self.original, *path, group), str(dig(container, "name")))
                for mount in as_list(dig(container, "volumeMounts")):
                    if dig(mount, "name") == volume:
                        where: FieldPath = (
                            *path,
                            group,
                            ("name", str(container.get("name"))),
                            "volumeMounts",
                        )
                        theirs = as_list(as_mapping(before).get("volumeMounts"))
                        self._item(
                            container, "volumeMounts", str(mount.get("mountPath")), "mountPath", theirs, where
                        )

    def _item(
        self, holder: Mutable, key: str, value: str, by: str, before: list[Any], path: FieldPath
    ) -> None:
        items = as_list(holder.get(key))
        if not any(dig(item, by) == value for item in items) or any(
            dig(item, by) == value for item in before
        ):
            return
        if self.original is None and not self._ours((*path, (by, value))):
            self.kept.append(value)
            return
        left = [item for item in items if dig(item, by) != value]
        if left:
            holder[key] = left
        else:
            del holder[key]

    def _ours(self, path: FieldPath, *, recorded: bool = False) -> bool:
        written = self.written(path)
        return written is True or (written is None and not recorded and not self.recorded)

    def _prune(self, path: tuple[str, ...]) -> None:
        """Remove mappings that have become empty."""
        while path and path[-1] in _PRUNED and dig(self.data, *path) == {}:
            parent = dig(self.data, *path[:-1]) if path[:-1] else self.data
            del parent[path[-1]]
            path = path[:-1]


def _parts(text: object) -> list[str]:
    """Return the parts of a text between commas; none for anything else."""
    return [part.strip() for part in text.split(",") if part.strip()] if isinstance(text, str) else []


def _mapping(text: object) -> Mutable | None:
    """Return the mapping that a text spells; None for anything else."""
    if not isinstance(text, str):
        return None
    try:
        mapping = load_text(text, PROXY_CONFIG_ANNOTATION)
    except InputError:
        return None
    return mapping if isinstance(mapping, dict) else None


def _named(items: Any, name: str) -> Any:
    """Return the last item of a list with this name, None without one."""
    return next((item for item in reversed(as_list(items)) if dig(item, "name") == name), None)
