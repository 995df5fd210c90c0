"""Read objects from the text of manifests and dumps, fast enough for a dump of a whole cluster.

`kubectl get -A -o yaml` writes plain block style, and repeats much for every pod of a workload. The fast
reader here parses that style line by line. It parses equal blocks once and shares the result in memory. Other
YAML goes to the loader of `istio.fields`, which gives the same data.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from meshscrape.errors import InputError, Place
from meshscrape.istio.fields import NO_OBJECT, load_documents
from meshscrape.istio.names import ROOT_NAMESPACE
from meshscrape.kube.objects import Manifest, as_mapping, dig, flatten, manifest_of
from meshscrape.kube.screening import is_istio_operator, reason_to_skip, refuse_unquoted
from meshscrape.kube.shared_json import SharedJson

SKIPPED = "skipped"

_KEY = re.compile(r"([A-Za-z_][A-Za-z0-9_./-]*):(?: +(.*))?")
# This matches only what must be a string; the loader decides about other text.
_PLAIN = re.compile(r"[A-Za-z/](?:[A-Za-z0-9_./:@$()=,+~%-]*[A-Za-z0-9_./@$()=,+~%-])?")
_LIKE_TEXT = re.compile(
    r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
)
_NOT_TEXT = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})
_QUOTED = re.compile(r"'([^']*)'|\"([^\"\\]*)\"")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_CONSTANTS: dict[str, Any] = {"true": True, "false": False, "null": None}
_MAX_DEPTH = 100
# Smaller blocks are cheaper to read than to look up.
_WORTH_SHARING = 3
# Lines before the items of a dumped list.
_MAX_HEAD = 10


class _NotPlainError(Exception):
    """The text is not in the plain style of kubectl, so that the loader must read it."""


class _Part(NamedTuple):
    """Lines of a file from line `start` on: a whole document, or one item of a dumped list."""

    start: int
    lines: list[str]
    is_item: bool


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that kubectl accepts although it looks like a mistake: place, description and code."""

    place: Place
    what: str
    code: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


def load_manifests(
    lines: Iterable[str], where: str, notices: list[Notice] | None = None
) -> Iterator[Manifest]:
    """Return the objects of one file's `lines` (with or without line ends); `where` names the file.

    The lines are JSON or YAML with one or many documents; of a list, its items are returned. As in kubectl,
    the last value of a repeated key counts. A document that is not an object of a cluster is left out. Both
    cases are appended to `notices`. Raises InputError with the place for text that kubectl or the API server
    would refuse.
    """
    reader = _Reader(where, [] if notices is None else notices)
    shared = SharedJson()
    for part in _split(lines):
        first = next((line.lstrip() for line in part.lines if line.strip()), "")
        if first.startswith("{"):
            yield from _json(part, reader, shared)
        elif first:
            yield from reader.objects(part)


def _split(lines: Iterable[str]) -> Iterator[_Part]:
    """Yield each document, and each item of a dumped list, so that a dump is never in memory as a whole."""
    numbered = iter(enumerate((line.rstrip("\r\n") for line in lines), 1))
    for number, line in numbered:
        if not line.strip():
            continue
        rest = itertools.chain([(number, line)], numbered)
        return _split_json(rest) if line == "{" else _split_yaml(rest, number)
    return iter(())


def _split_yaml(numbered: Iterator[tuple[int, str]], start: int) -> Iterator[_Part]:
    """Yield the documents of YAML; `---` at the beginning of a line always ends a document.

    It cannot be part of a value: block scalars are indented, and quoted text must not contain it there.
    """
    gathered: list[str] = []
    in_items = False
    for number, line in numbered:
        if line[:3] in ("---", "...") and line[3:4] in ("", " ", "\t"):
            yield _Part(start, gathered, in_items)
            rest = line[3:].strip()
            gathered = [] if not rest or rest.startswith("#") else [rest]
            start, in_items = number + (not gathered), False
        elif line == "items:" and gathered == ["apiVersion: v1"]:
            gathered, start, in_items = [], number + 1, True
        elif in_items and line.startswith("- "):
            yield _Part(start, gathered, True)
            gathered, start = [line], number
        elif in_items and line[:1] not in (" ", "", "#"):
            yield _Part(start, gathered, True)
            # The lines after the items say that it was a list.
            gathered, start, in_items = ["apiVersion: v1", "items: []", line], number - 2, False
        else:
            gathered.append(line)
    yield _Part(start, gathered, in_items)


def _split_json(numbered: Iterator[tuple[int, str]]) -> Iterator[_Part]:
    """Yield the items of a JSON list as kubectl indents it.

    A JSON string contains no line end, so the indentation shows where an item begins and ends.
    """
    outside: list[str] = []
    gathered: list[str] = []
    start, item, after = 1, "", ""
    for number, line in numbered:
        if not item and line.strip() == '"items": [' and len(outside) < _MAX_HEAD:
            indent = line[: len(line) - len(line.lstrip())]
            item, after = f"{indent}{indent}{{", f"{indent}]"
            outside.append(line)
        elif item and line == item and not gathered:
            gathered, start = [line], number
        elif gathered:
            gathered.append(line)
            if line.rstrip(",") == item.replace("{", "}"):
                yield _Part(start, [*gathered[:-1], line.rstrip(",")], True)
                gathered = []
        else:
            outside.append(line)
            if item and line.rstrip(",") == after:
                item = ""
    yield _Part(1, [*outside, *gathered], False)


class _Reader:
    """Read the documents of one file, and keep the blocks that were read."""

    def __init__(self, source: str, notices: list[Notice]) -> None:
        self._source = source
        self._notices = notices
        self._blocks: dict[bytes, Any] = {}

    def objects(self, part: _Part) -> Iterator[Manifest]:
        """Return the objects of a part."""
        try:
            data = _Plain(list(part.lines), self._blocks).read()
        except _NotPlainError:
            yield from self.strictly(part)
            return
        if part.is_item and isinstance(data, list) and len(data) == 1:
            data = data[0]
        if not isinstance(data, dict):
            yield from self.strictly(part)
            return
        yield from self.manifests(data, part.start)

    def strictly(self, part: _Part) -> Iterator[Manifest]:
        """Return the objects of a part, read by the general YAML loader."""
        head = ["kind: List", "items:"] if part.is_item else []
        documents = load_documents(
            "\n".join([*head, *part.lines]),
            self._source,
            first_line=part.start - len(head),
            notice=self._tell,
        )
        for document in documents:
            data: Mapping[str, Any] = document.data
            items = data.get("items")
            if part.is_item and isinstance(items, list) and len(items) == 1 and isinstance(items[0], dict):
                data = items[0]
            yield from self.manifests(data, max(document.line, part.start))

    def manifests(self, data: Mapping[str, Any], line: int) -> Iterator[Manifest]:
        """Return the objects in the `data` of a part that begins on `line`."""
        for item, place in flatten(data, f"{self._source}:{line}"):
            if reason := reason_to_skip(item):
                self._notices.append(Notice(Place(file=place), f"skipped, {reason}", SKIPPED))
                continue
            refuse_unquoted(item, place)
            yield manifest_of(_named(item, place), place)

    def _tell(self, code: str, what: str, line: int) -> None:
        skipped = code == NO_OBJECT
        self._notices.append(
            Notice(
                Place(file=self._source, line=line),
                f"skipped, {what}" if skipped else what,
                SKIPPED if skipped else code,
            )
        )


class _Plain:
    """One document in kubectl's style, from its lines."""

    def __init__(self, lines: list[str], blocks: dict[bytes, Any]) -> None:
        self._lines = lines
        self._indents = [_indent(line) for line in lines]
        self._blocks = blocks

    def read(self) -> Any:
        return self._node(0, len(self._lines), 0)

    def _node(self, low: int, high: int, depth: int) -> Any:
        if high - low < _WORTH_SHARING or not depth:
            return self._read_node(low, high, depth)
        key = blake2b("\n".join(self._lines[low:high]).encode(), digest_size=16).digest()
        if key not in self._blocks:
            self._blocks[key] = self._read_node(low, high, depth)
        return self._blocks[key]

    def _read_node(self, low: int, high: int, depth: int) -> Any:
        while low < high and (self._indents[low] < 0 or self._is_comment(low)):
            low += 1
        if low == high or depth > _MAX_DEPTH:
            raise _NotPlainError
        if self._lines[low][self._indents[low] :].startswith("- "):
            return self._sequence(low, high, depth)
        return self._mapping(low, high, depth)

    def _is_comment(self, index: int) -> bool:
        return self._lines[index][self._indents[index]] == "#"

    def _mapping(self, low: int, high: int, depth: int) -> dict[str, Any]:
        indent = self._indents[low]
        result: dict[str, Any] = {}
        while low < high:
            if self._indents[low] < 0 or self._is_comment(low):
                low += 1
                continue
            match = _KEY.fullmatch(self._lines[low], self._indents[low])
            if self._indents[low] != indent or match is None:
                raise _NotPlainError
            key, value = match[1], (match[2] or "").rstrip(" ")
            if key in result or key.lower() in _NOT_TEXT:
                raise _NotPlainError
            end = self._end(low + 1, high, indent, sequences=not value)
            if end == low + 1:
                result[key] = self._scalar(value) if value else None
            elif value:
                result[key] = self._odd(low, end)[key]
            else:
                result[key] = self._node(low + 1, end, depth + 1)
            low = end
        return result

    def _end(self, low: int, high: int, indent: int, sequences: bool) -> int:
        """Return where the block ends that began on the line before `low`, with `indent`."""
        indents, lines = self._indents, self._lines
        end = low
        while low < high:
            here = indents[low]
            if here > indent or (sequences and here == indent and lines[low].startswith("- ", here)):
                end = low + 1
            elif here >= 0:
                break
            low += 1
        return end

    def _sequence(self, low: int, high: int, depth: int) -> list[Any]:
        indent = self._indents[low]
        result: list[Any] = []
        while low < high:
            if self._indents[low] < 0 or self._is_comment(low):
                low += 1
                continue
            line = self._lines[low]
            if self._indents[low] != indent or not line.startswith("- ", indent):
                raise _NotPlainError
            end = self._end(low + 1, high, indent, sequences=False)
            result.append(self._item(low, end, indent, depth))
            low = end
        return result

    def _item(self, low: int, end: int, indent: int, depth: int) -> Any:
        rest = self._lines[low][indent + 2 :].lstrip(" ")
        if _KEY.fullmatch(rest):
            self._lines[low] = self._lines[low][:indent] + " " + self._lines[low][indent + 1 :]
            self._indents[low] = len(self._lines[low]) - len(rest)
            return self._node(low, end, depth + 1)
        if end > low + 1 or rest.startswith(("- ", "? ")):
            raise _NotPlainError
        return self._scalar(rest.rstrip(" "))

    def _scalar(self, text: str) -> Any:
        if _PLAIN.fullmatch(text) and text.lower() not in _NOT_TEXT:
            return text
        if quoted := _QUOTED.fullmatch(text):
            return quoted[1] if quoted[1] is not None else quoted[2]
        if _INTEGER.fullmatch(text):
            return int(text)
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if _LIKE_TEXT.fullmatch(text):
            return text
        if text in ("{}", "[]"):
            return {} if text == "{}" else []
        return self._strict(f"value: {text}")["value"]

    def _odd(self, low: int, high: int) -> Mapping[str, Any]:
        # Keep the indentation of a block scalar's lines, because the general loader needs it.
        return self._strict("\n".join(self._lines[low:high]) + "\n")

    def _strict(self, text: str) -> Mapping[str, Any]:
        key = blake2b(text.encode(), digest_size=16).digest()
        if key not in self._blocks:
            try:
                documents = load_documents(text, "")
            except InputError as error:
                # The general loader then reads the whole part again, and its error has the place.
                raise _NotPlainError from error
            if len(documents) != 1 or len(documents[0].data) != 1:
                raise _NotPlainError
            self._blocks[key] = documents[0].data
        block: Mapping[str, Any] = self._blocks[key]
        return block


def _named(data: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """Give an IstioOperator without a name one made of its place, so that two files are two objects."""
    if not is_istio_operator(data) or dig(data, "metadata", "name"):
        return data
    name = "".join(letter if letter.isprintable() else "?" for letter in place)
    return {
        **data,
        "metadata": {"namespace": ROOT_NAMESPACE, **as_mapping(data.get("metadata")), "name": name},
    }


def _indent(line: str) -> int:
    stripped = line.lstrip(" ")
    return len(line) - len(stripped) if stripped.strip() else -1


def _json(part: _Part, reader: _Reader, shared: SharedJson) -> Iterator[Manifest]:
    try:
        data = shared.decode("\n".join(part.lines))
    except (ValueError, RecursionError):
        # YAML's flow style begins like JSON; the loader reads it, or says what is wrong and where.
        yield from reader.strictly(part._replace(is_item=False))
        return
    yield from reader.manifests(data, part.start)
