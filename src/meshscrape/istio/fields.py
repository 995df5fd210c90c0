"""YAML documents of Kubernetes objects, with the line of every field for error messages.

Loading is safe: the result is plain data, and aliases cannot make it arbitrarily large.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NoReturn

import yaml
from yaml.constructor import ConstructorError

from meshscrape.errors import InputError, Place
from meshscrape.istio.ports import parse_port, shorten
from meshscrape.istio.yaml_bounds import LOADER, check_yaml

Path = tuple[str | int, ...]

_AS_WRITTEN = frozenset({"tag:yaml.org,2002:str", "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"})
_TYPED = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float"))
_QUOTE = "quote the value, without a tag"
_MERGE = "tag:yaml.org,2002:merge"
_BOOLEAN = "tag:yaml.org,2002:bool"

# Receives what kubectl accepts and strict reading refuses: a code, a description, and the line from 1.
Notice = Callable[[str, str, int], None]
REPEATED_KEY = "repeated-key"
NO_OBJECT = "no-object"


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document: its data, where it begins (`mesh.yaml:12`), and the line of each field.

    `source` and `line` are the parts of `where`. `blocks` are the lines where literal block scalars (`|`)
    begin, for places within them.
    """

    data: Mapping[str, object]
    where: str
    source: str = ""
    line: int = 0
    lines: Mapping[Path, int] = field(default_factory=dict)
    blocks: Mapping[Path, int] = field(default_factory=dict)

    def place_of(self, path: Path, within: int = 0) -> Place:
        """Return the place of the field at `path`, or of the nearest field around it that is there.

        `within` is the line within the field's text, from 1; it counts for literal block scalars only.
        """
        if within and path in self.blocks:
            return Place(file=self.source, line=self.blocks[path] + within)
        for length in range(len(path), -1, -1):
            if line := self.lines.get(path[:length]):
                return Place(file=self.source, line=line)
        return Place(file=self.source, line=self.line) if self.line else Place(file=self.where)


# PyYAML raises these for text that it cannot parse, and for a value that does not fit its tag (`!!int x`,
# `!!bool x`, `!!int ""`, `!!timestamp x`, a date before the first year).
LOADER_ERRORS = (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, OverflowError)


def load_documents(
    text: str, where: str, *, first_line: int = 1, notice: Notice | None = None
) -> list[Document]:
    """Return the YAML documents of `text`, without the empty ones; `where` names the file in errors.

    Every document is a mapping with string keys. Timestamps stay text. `first_line` is the line of the file
    where the text begins. Raises InputError with the file and line for YAML that cannot be read, for tags,
    merge keys, repeated keys, and documents that are not mappings. With `notice` the text is read as kubectl
    reads it: merge keys work, the last value of a repeated key counts, and a document that is not a mapping
    is left out. `notice` is called for the last two.
    """
    try:
        check_yaml(text, where, first_line=first_line, on_repeated=_repeated(notice))
        loader = LOADER(text)
        try:
            return list(_documents(loader, where, first_line, notice))
        finally:
            loader.dispose()
    except LOADER_ERRORS as error:
        raise unreadable(error, where, first_line) from error


def _repeated(notice: Notice | None) -> Callable[[str, int], None] | None:
    if notice is None:
        return None

    def tell(key: str, line: int) -> None:
        notice(REPEATED_KEY, f"key {shorten(key)} is repeated: the last one counts", line)

    return tell


def _documents(
    loader: yaml.SafeLoader, source: str, first_line: int, notice: Notice | None
) -> Iterator[Document]:
    while loader.check_node():
        node = loader.get_node()
        if node is None:
            break
        line = node.start_mark.line + first_line
        if isinstance(node, yaml.ScalarNode) and not node.value.strip():
            continue
        if not isinstance(node, yaml.MappingNode):
            what = _no_mapping(node)
            if notice is None:
                raise InputError(
                    what,
                    where=Place(file=source, line=line),
                    remedy="write a Kubernetes object with apiVersion and kind",
                    code=NO_OBJECT,
                )
            notice(NO_OBJECT, what, line)
            continue
        builder = _Builder(loader, source, first_line, notice is not None)
        data = builder.mapping(node, ())
        yield Document(data, f"{source}:{line}", source, line, builder.lines, builder.blocks)


def _no_mapping(node: yaml.Node) -> str:
    """Describe a document that is not an object; `kubectl patch` and kustomize use lists of operations."""
    if isinstance(node, yaml.SequenceNode) and node.value and isinstance(node.value[0], yaml.MappingNode):
        keys = {key.value for key, _ in node.value[0].value if isinstance(key, yaml.ScalarNode)}
        if {"op", "path"} <= keys:
            return "not an object but a JSON patch"
    return "not an object"


class _Builder:
    """Turn one tree of nodes into plain data and note where each field was.

    With `lenient`, merge keys work and truth values can be keys, as in kubectl; otherwise both are errors.
    """

    def __init__(self, loader: yaml.SafeLoader, source: str, first_line: int, lenient: bool) -> None:
        self.lines: dict[Path, int] = {}
        self.blocks: dict[Path, int] = {}
        self._loader = loader
        self._source = source
        self._first_line = first_line
        self._lenient = lenient

    def _line(self, node: yaml.Node) -> int:
        return int(node.start_mark.line) + self._first_line

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, object]:
        self.lines.setdefault(path, self._line(node))
        result: dict[str, object] = {}
        merged: dict[str, object] = {}
        for key_node, value_node in node.value:
            if self._lenient and key_node.tag == _MERGE:
                merged = self._merged(key_node, value_node, path)
                continue
            key = self._key(key_node)
            # Note the key's line, not the value's, because people look there.
            self.lines[(*path, key)] = self._line(key_node)
            result[key] = self._value(value_node, (*path, key))
        return {**merged, **result}

    def _merged(self, key: yaml.Node, node: yaml.Node, path: Path) -> dict[str, object]:
        """Return the fields that a merge key (`<<`) brings; of several mappings the first has precedence."""
        result: dict[str, object] = {}
        for part in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(part, yaml.MappingNode):
                self._refuse(key, "merge-key", "a merge key (<<) needs a mapping", "write the fields out")
            result = {**self.mapping(part, path), **result}
        return result

    def _key(self, node: yaml.Node) -> str:
        if node.tag == _MERGE:
            self._refuse(node, "merge-key", "merge keys (<<) are not supported", "write the fields out")
        if not isinstance(node, yaml.ScalarNode):
            self._refuse(node, "not-a-string", "a key is not a string", "write a name before the colon")
        if self._lenient and node.tag == _BOOLEAN:
            return str(self._typed(node)).lower()
        # Numbers as keys become strings, as in the Kubernetes API (portLevelMtls is written so).
        if node.tag not in _AS_WRITTEN | {"tag:yaml.org,2002:int"}:
            self._refuse(node, "not-a-string", f"key {shorten(node.value)} is not a string", "quote it")
        return str(node.value)

    def _value(self, node: yaml.Node, path: Path) -> object:
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self._item(item, (*path, index)) for index, item in enumerate(node.value)]
        if node.tag in _AS_WRITTEN and isinstance(node, yaml.ScalarNode):
            if node.style == "|":
                self.blocks[path] = self._line(node)
            return node.value
        if node.tag in _TYPED:
            return self._typed(node)
        self._refuse(node, "yaml-type", unsupported_tag(node.tag), _QUOTE)

    def _typed(self, node: yaml.Node) -> object:
        try:
            return self._loader.construct_object(node)
        except LOADER_ERRORS:
            # Do not show the value: it may be a secret with a wrong tag.
            kind = node.tag.rpartition(":")[2]
            self._refuse(node, "yaml-type", f"a value is not of its YAML type {kind}", _QUOTE)

    def _item(self, node: yaml.Node, path: Path) -> object:
        self.lines[path] = self._line(node)
        return self._value(node, path)

    def _refuse(self, node: yaml.Node, code: str, what: str, remedy: str) -> NoReturn:
        place = Place(file=self._source, line=self._line(node))
        raise InputError(what, where=place, remedy=remedy, code=code)


def unreadable(error: Exception, file: str, first_line: int = 1) -> InputError:
    """Return the error for a YAML text that a loader refused."""
    remedy, code = "correct the YAML there", "not-yaml"
    place = Place(file=file)
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        if mark:
            place = Place(file=file, line=mark.line + first_line)
        if isinstance(error, ConstructorError) and "tag '!" in str(error.problem):
            return InputError(unsupported_tag("!"), where=place, remedy=_QUOTE, code=code)
        context = f" ({error.context})" if error.context else ""
        return InputError(f"not YAML: {error.problem}{context}", where=place, remedy=remedy, code=code)
    if isinstance(error, RecursionError):
        return InputError("not YAML: nested too deeply", where=place, remedy=remedy, code=code)
    # Show only the parser's own message: other errors contain the value, which may be a secret.
    known = isinstance(error, yaml.YAMLError) and str(error)
    first = str(error).splitlines()[0] if known else "a value is not of its type"
    return InputError(f"not YAML: {first}", where=place, remedy=remedy, code=code)


def unsupported_tag(tag: str) -> str:
    """Return the message for an unsupported tag, without a user's own tag: it may be an unquoted secret."""
    standard = tag.rpartition(":")[2] if tag.startswith("tag:yaml.org,") else ""
    return f"the YAML type {standard} is not supported" if standard else "a tag (!…) is not supported"


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a document: its value and its place."""

    document: Document
    owner: str
    path: Path
    value: object

    @classmethod
    def of(cls, document: Document, owner: str) -> Field:
        """Return the whole document as a field; `owner` names it in errors (`Deployment default/httpbin`)."""
        return cls(document, owner, (), document.data)

    @property
    def place(self) -> Place:
        """Return the file and line, the object, and the path of the field."""
        return replace(self.document.place_of(self.path), object=self.owner, field=spell(self.path))

    @property
    def where(self) -> str:
        """Return the place as text: `mesh.yaml:37: Deployment default/httpbin: spec.replicas`."""
        return str(self.place)

    def refuse(self, code: str, what: str, remedy: str) -> NoReturn:
        """Raise InputError here; `code` says which mistake it is, in kebab-case."""
        raise InputError(what, where=self.place, remedy=remedy, code=code)

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
        """Return the field `key` in this mapping; its value is None when it is absent."""
        value = self.value.get(key) if isinstance(self.value, Mapping) else None
        return Field(self.document, self.owner, (*self.path, key), value)

    def mapping(self, key: str, *, required: bool = False) -> Field:
        """Return the mapping `key`; an absent one is empty unless it is required."""
        field = self.at(key)
        if field.value is None and not required:
            return Field(field.document, field.owner, field.path, {})
        if not isinstance(field.value, Mapping):
            field.refuse(
                "missing" if field.value is None else "not-a-mapping",
                "missing" if field.value is None else "not a mapping",
                f"write {key}: with fields",
            )
        return field

    def items(self, key: str) -> list[Field]:
        """Return the elements of the list `key`, each a mapping; an absent list has none."""
        elements = self.elements(key)
        for item in elements:
            if not isinstance(item.value, Mapping):
                item.refuse("not-a-mapping", "not a mapping", "write its fields as name: value")
        return elements

    def elements(self, key: str) -> list[Field]:
        """Return the elements of the list `key`; an absent list has none."""
        field = self.at(key)
        if field.value is None:
            return []
        if not isinstance(field.value, list):
            field.refuse("not-a-list", "not a list", "write its elements with dashes")
        return [
            Field(self.document, self.owner, (*field.path, index), value)
            for index, value in enumerate(field.value)
        ]

    def text(self, key: str, default: str | None = None) -> str:
        """Return the string `key`; it must be there when `default` is None."""
        field = self.at(key)
        if field.value is None and default is not None:
            return default
        if field.value is None or field.value == "":
            field.refuse("missing", "missing", f"write {key}")
        return field.as_text()

    def as_text(self) -> str:
        """Return this value, which must be a string."""
        if not isinstance(self.value, str):
            self.refuse("not-a-string", f"{shorten(self.value)} is not a string", "quote it")
        return self.value

    def port(self, key: str) -> int:
        """Return the port number `key`, which must be there."""
        field = self.at(key)
        if not isinstance(field.value, int) or isinstance(field.value, bool):
            field.refuse(
                "missing" if field.value is None else "not-a-number",
                "missing" if field.value is None else "not a number",
                f"write {key}: 9080",
            )
        return parse_port(str(field.value), field.place)

    def strings(self, key: str) -> dict[str, str]:
        """Return the mapping of strings to strings `key` (labels, annotations); an absent one is empty."""
        field = self.mapping(key)
        assert isinstance(field.value, Mapping)  # noqa: S101 - mapping() just checked it
        return {name: field.at(name).as_text() for name in field.value}

    def only(self, *known: str) -> None:
        """Raise InputError for a field that is none of `known`."""
        if not isinstance(self.value, Mapping):
            return
        for name in self.value:
            if name not in known:
                self.at(name).refuse(
                    "unknown-field", f"unknown field {shorten(name)}", suggestion(name, known)
                )

    def no_misspelt(self, *known: str, also: Collection[str] = ()) -> None:
        """Raise InputError for a field that is nearly one of `known`; the names in `also` are allowed."""
        if not isinstance(self.value, Mapping):
            return
        for name in self.value:
            if name not in known and name not in also and (near := closest(name, known)):
                self.at(name).refuse(
                    "unknown-field", f"unknown field {shorten(name)}", f"did you mean {near}?"
                )


def spell(path: Path) -> str:
    """Return a path of keys and indexes as text: `spec.template.metadata.annotations["a/b"][0]`."""
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
    """Return the member of `known` that is most similar to `name`, or None when none is similar."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return near[0] if near else None


def suggestion(name: str, known: Collection[str], cutoff: float = 0.6) -> str:
    """Return the remedy for an unknown `name`: the nearest of `known`, else all of them."""
    near = closest(name, known, cutoff)
    return f"did you mean {near}?" if near else f"known are {', '.join(sorted(known))}"
