"""YAML documents of Kubernetes objects, with the line of every field for error messages.

Loading is safe and strict: plain data only, no repeated keys, no YAML that grows without bound.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import yaml

from meshscrape.errors import InputError
from meshscrape.istio.ports import parse_port, shorten

Path = tuple[str | int, ...]

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Aliases can repeat a node exponentially often ("billion laughs"); no real set of manifests is nearly so big.
_MAX_NODES = 200_000
_MAX_DEPTH = 100
_AS_WRITTEN = frozenset({"tag:yaml.org,2002:str", "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"})
_TYPED = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float"))
_MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document: its data, where it begins (`mesh.yaml:12`), and the line of each field.

    `blocks` are the lines where literal block scalars (`|`) begin, for places within them.
    """

    data: Mapping[str, object]
    where: str
    source: str = ""
    lines: Mapping[Path, int] = field(default_factory=dict)
    blocks: Mapping[Path, int] = field(default_factory=dict)

    def line_of(self, path: Path, within: int = 0) -> str:
        """`mesh.yaml:37` for the field at `path`, or for the nearest field around it that is there.

        `within` is the line within the field's text, from 1; it counts for literal block scalars only.
        """
        if within and path in self.blocks:
            return f"{self.source}:{self.blocks[path] + within}"
        for length in range(len(path), -1, -1):
            if line := self.lines.get(path[:length]):
                return f"{self.source}:{line}"
        return self.where


def load_documents(text: str, where: str) -> list[Document]:
    """The YAML documents of `text`, read from the file that `where` names; empty ones are left out.

    Every document is a mapping with string keys. Timestamps stay the text that they are. Raises InputError
    with `where` and the line: for YAML that cannot be read, repeated keys, tags, merge keys.
    """
    try:
        _refuse_deep(text, where)
        loader = _Loader(text)
        try:
            return list(_documents(loader, where))
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise _unreadable(error, where) from error


def _refuse_deep(text: str, source: str) -> None:
    """Bound the nesting before composing nodes: libyaml's composer recurses in C until the stack ends."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise InputError(
                "nested too deeply",
                where=f"{source}:{event.start_mark.line + 1}" if event.start_mark else source,
                remedy=f"use at most {_MAX_DEPTH} levels",
            )


def _documents(loader: yaml.SafeLoader, source: str) -> Iterator[Document]:
    while loader.check_node():
        node = loader.get_node()
        if node is None:
            break
        place = f"{source}:{node.start_mark.line + 1}"
        if isinstance(node, yaml.ScalarNode) and not node.value.strip():
            continue
        if not isinstance(node, yaml.MappingNode):
            raise InputError(
                "not an object", where=place, remedy="write a Kubernetes object with apiVersion and kind"
            )
        builder = _Builder(loader, source)
        data = builder.mapping(node, ())
        yield Document(data, place, source, builder.lines, builder.blocks)


class _Builder:
    """Turns one tree of nodes into plain data and notes where each field was."""

    def __init__(self, loader: yaml.SafeLoader, source: str) -> None:
        self.lines: dict[Path, int] = {}
        self.blocks: dict[Path, int] = {}
        self._loader = loader
        self._source = source
        self._nodes = 0

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, object]:
        self.lines.setdefault(path, node.start_mark.line + 1)
        result: dict[str, object] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            if key in result:
                self._refuse(key_node, f"key {shorten(key)} is repeated", "keep one of the two")
            # The key's line, not the value's: that is where a reader looks.
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            result[key] = self._value(value_node, (*path, key))
        return result

    def _key(self, node: yaml.Node) -> str:
        if node.tag == _MERGE:
            self._refuse(node, "merge keys (<<) are not supported", "write the fields out")
        if not isinstance(node, yaml.ScalarNode):
            self._refuse(node, "a key is not a string", "write a name before the colon")
        # Numbers as keys become strings, as for the Kubernetes API (portLevelMtls is written so).
        if node.tag not in _AS_WRITTEN | {"tag:yaml.org,2002:int"}:
            self._refuse(node, f"key {shorten(node.value)} is not a string", "quote it")
        return str(node.value)

    def _value(self, node: yaml.Node, path: Path) -> object:
        self._nodes += 1
        if self._nodes > _MAX_NODES or len(path) > _MAX_DEPTH:
            self._refuse(node, "the document is too large", "split it, and use fewer aliases")
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self._item(item, (*path, index)) for index, item in enumerate(node.value)]
        if node.tag in _AS_WRITTEN:
            if isinstance(node, yaml.ScalarNode) and node.style == "|":
                self.blocks[path] = node.start_mark.line + 1
            return node.value
        if node.tag in _TYPED:
            return self._typed(node)
        self._refuse(node, f"tag {shorten(node.tag)} is not supported", "remove it")

    def _typed(self, node: yaml.Node) -> object:
        try:
            return self._loader.construct_object(node)
        except (yaml.YAMLError, ValueError, KeyError):
            self._refuse(node, f"{shorten(node.value)} is not a value that YAML knows", "quote it")

    def _item(self, node: yaml.Node, path: Path) -> object:
        self.lines[path] = node.start_mark.line + 1
        return self._value(node, path)

    def _refuse(self, node: yaml.Node, what: str, remedy: str) -> NoReturn:
        raise InputError(what, where=f"{self._source}:{node.start_mark.line + 1}", remedy=remedy)


def _unreadable(error: Exception, where: str) -> InputError:
    remedy = "correct the YAML there"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}" if mark else where
        context = f" ({error.context})" if error.context else ""
        return InputError(f"not YAML: {error.problem}{context}", where=place, remedy=remedy)
    if isinstance(error, RecursionError):
        return InputError("not YAML: nested too deeply", where=where, remedy=remedy)
    first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"not YAML: {first_line}", where=where, remedy=remedy)


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a document: its value, and enough to say where it is."""

    document: Document
    owner: str
    path: Path
    value: object

    @classmethod
    def of(cls, document: Document, owner: str) -> Field:
        """The whole document; `owner` is how errors call it (`Deployment default/httpbin`)."""
        return cls(document, owner, (), document.data)

    @property
    def where(self) -> str:
        """`mesh.yaml:37: Deployment default/httpbin: spec.replicas`."""
        parts = [self.document.line_of(self.path), self.owner, spell(self.path)]
        return ": ".join(part for part in parts if part)

    def refuse(self, what: str, remedy: str) -> NoReturn:
        """Raise InputError here."""
        raise InputError(what, where=self.where, remedy=remedy)

    def below(self, path: Path) -> Field:
        """Return the field at `path` under this one; its value is None when it is not there."""
        value = self.value
        for step in path:
            if isinstance(step, int):
                value = value[step] if isinstance(value, list) and step < len(value) else None
            else:
                value = value.get(step) if isinstance(value, Mapping) else None
        return Field(self.document, self.owner, (*self.path, *path), value)

    def at(self, key: str) -> Field:
        """The field `key` in this mapping; its value is None when it is not there."""
        value = self.value.get(key) if isinstance(self.value, Mapping) else None
        return Field(self.document, self.owner, (*self.path, key), value)

    def mapping(self, key: str, *, required: bool = False) -> Field:
        """The mapping `key`; an absent one is empty unless it is required."""
        found = self.at(key)
        if found.value is None and not required:
            return Field(found.document, found.owner, found.path, {})
        if not isinstance(found.value, Mapping):
            found.refuse("missing" if found.value is None else "not a mapping", f"write {key}: with fields")
        return found

    def items(self, key: str) -> list[Field]:
        """The elements of the list `key`, each a mapping; an absent list has none."""
        found = self.elements(key)
        for item in found:
            if not isinstance(item.value, Mapping):
                item.refuse("not a mapping", "write its fields as name: value")
        return found

    def elements(self, key: str) -> list[Field]:
        """The elements of the list `key`; an absent list has none."""
        found = self.at(key)
        if found.value is None:
            return []
        if not isinstance(found.value, list):
            found.refuse("not a list", "write its elements with dashes")
        return [
            Field(self.document, self.owner, (*found.path, index), value)
            for index, value in enumerate(found.value)
        ]

    def text(self, key: str, default: str | None = None) -> str:
        """The string `key`; required when `default` is None."""
        found = self.at(key)
        if found.value is None and default is not None:
            return default
        if found.value is None or found.value == "":
            found.refuse("missing", f"write {key}")
        return found.as_text()

    def as_text(self) -> str:
        """This value, when it is a string."""
        if not isinstance(self.value, str):
            self.refuse(f"{shorten(self.value)} is not a string", "quote it")
        return self.value

    def port(self, key: str) -> int:
        """The port number `key`, required."""
        found = self.at(key)
        if not isinstance(found.value, int) or isinstance(found.value, bool):
            found.refuse("missing" if found.value is None else "not a number", f"write {key}: 9080")
        return parse_port(str(found.value), found.where)

    def strings(self, key: str) -> dict[str, str]:
        """The mapping of strings to strings `key` (labels, annotations); an absent one is empty."""
        found = self.mapping(key)
        assert isinstance(found.value, Mapping)  # noqa: S101 - mapping() just checked it
        return {name: found.at(name).as_text() for name in found.value}

    def only(self, *known: str) -> None:
        """Raise InputError for a field that is none of `known`."""
        if not isinstance(self.value, Mapping):
            return
        for name in self.value:
            if name not in known:
                self.at(name).refuse(f"unknown field {shorten(name)}", suggestion(name, known))

    def no_misspelt(self, *known: str, also: Collection[str] = ()) -> None:
        """Raise InputError for a field that is nearly but not quite one of `known`; `also` are fine too."""
        if not isinstance(self.value, Mapping):
            return
        for name in self.value:
            if name not in known and name not in also and (near := closest(name, known)):
                self.at(name).refuse(f"unknown field {shorten(name)}", f"did you mean {near}?")


def spell(path: Path) -> str:
    """`spec.template.metadata.annotations["a/b"][0]` for a path of keys and indexes."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.replace("_", "").isalnum():
            text += f".{part}" if text else part
        else:
            text += f"[{shorten(part)}]"
    return text


def closest(name: str, known: Collection[str], cutoff: float = 0.8) -> str | None:
    """The one of `known` that `name` was probably meant to be, or None."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return near[0] if near else None


def suggestion(name: str, known: Collection[str], cutoff: float = 0.6) -> str:
    """The remedy for an unknown `name`: the nearest of `known`, else all of them."""
    near = closest(name, known, cutoff)
    return f"did you mean {near}?" if near else f"known are {', '.join(sorted(known))}"
