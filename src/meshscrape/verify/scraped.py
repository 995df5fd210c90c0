"""Judge what a scrape returned: its type, its grammar, and what must be in it (pure).

The grammar is written here a second time, apart from the code that merges: a proof must not share the
mistakes of what it proves. Source: Prometheus, "Exposition formats", text format 0.0.4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from meshscrape.verify.observations import Answered, printable

# Possessive quantifiers never backtrack, so that a hostile line costs no more than a valid one.
_NAME = rb"[a-zA-Z_:][a-zA-Z0-9_:]*+"
_LABEL = rb'[a-zA-Z_][a-zA-Z0-9_]*+[ \t]*+=[ \t]*+"(?:[^"\\]|\\[\\"n])*+"'
_LABELS = rb"(?:" + _LABEL + rb"[ \t]*+(?:,[ \t]*+" + _LABEL + rb"[ \t]*+)*+(?:,[ \t]*+)?)?"
_NUMBER = rb"(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?[0-9]++)?"
_SAMPLE = re.compile(
    rb"(?P<name>" + _NAME + rb")[ \t]*+(?:\{[ \t]*+(?P<labels>" + _LABELS + rb")\}[ \t]*+)?(?<=[ \t}])"
    rb"(?P<value>[+-]?(?:" + _NUMBER + rb"|(?i:inf|nan)))(?:[ \t]++-?[0-9]++)?[ \t]*+"
)  # fmt: skip
_EACH_LABEL = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*+)[ \t]*+=[ \t]*+("(?:[^"\\]|\\[\\"n])*+")')
_META = re.compile(rb"#[ \t]++(?P<kind>HELP|TYPE)[ \t]++(?P<name>" + _NAME + rb")(?:[ \t]++(?P<rest>.*))?")
_SAMPLE_NAME = re.compile(rb"^(" + _NAME + rb")[ \t{]", re.MULTILINE)
_TYPES = (b"counter", b"gauge", b"histogram", b"summary", b"untyped")
_SUFFIXES = {b"histogram": (b"_bucket", b"_sum", b"_count"), b"summary": (b"_sum", b"_count")}
_ESCAPE = re.compile(r'\\([\\"n])')
SOURCE_UP = "meshscrape_source_up"
_MOST_FAULTS = 3


def content_type_fault(answer: Answered, *, versioned: bool) -> tuple[str, str]:
    """Return what is wrong with the Content-Type, and the Content-Type itself.

    The agent names the version that it negotiated (`versioned`). Envoy's own statistics come as `text/plain`
    without one, which every Prometheus reads as 0.0.4.
    """
    value = answer.header("content-type")
    media_type, *rest = (part.strip().lower() for part in value.split(";"))
    parameters = set(rest) - {"charset=utf-8"}
    exact = parameters == {"version=0.0.4"} or (not parameters and not versioned)
    if media_type == "text/plain" and exact:
        return "", printable(value)
    return f"Content-Type {printable(value)!r}" if value else "no Content-Type", ""


def exposition_fault(body: bytes) -> tuple[str, str]:
    """Return the first faults of the text format, with their lines, and how much was read."""
    scan = _Scan()
    faults: list[str] = []
    for fault in scan.faults(body):
        if len(faults) == _MOST_FAULTS:
            faults.append("and more")
            break
        faults.append(fault)
    return "; ".join(faults), f"{len(scan.series)} series in {len(scan.families)} families"


def missing_families(body: bytes, expected: Sequence[str]) -> tuple[str, str]:
    """Return which `expected` families (exact names, or prefixes that end in `_`) have no sample."""
    names = sample_names(body)
    missing = [
        wanted for wanted in expected
        if not any(name.startswith(wanted) if wanted.endswith("_") else name == wanted for name in names)
    ]  # fmt: skip
    shown = ", ".join(f"{family}*" if family.endswith("_") else family for family in missing)
    return f"no sample of {shown}" if missing else "", f"{len(names)} names"


def labelled_samples(body: bytes, prefix: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield name, labels and value of every sample whose name starts with `prefix`."""
    start = prefix.encode()
    for line in body.split(b"\n"):
        if line.startswith(start) and (sample := _SAMPLE.fullmatch(line)):
            labels = {
                name.decode("ascii"): _unescaped(value[1:-1])
                for name, value in _EACH_LABEL.findall(sample["labels"] or b"")
            }
            yield sample["name"].decode("ascii"), labels, float(sample["value"])


def _unescaped(value: bytes) -> str:
    return _ESCAPE.sub(lambda match: "\n" if match[1] == "n" else match[1], value.decode("utf-8", "replace"))


def sources_down(body: bytes, expected: Sequence[str]) -> tuple[str, str]:
    """Return which sources of a merged exposition are down, and which `expected` ones are missing in it."""
    states = {
        labels["source"]: value
        for name, labels, value in labelled_samples(body, SOURCE_UP)
        if name == SOURCE_UP and "source" in labels
    }
    down = [name for name, value in states.items() if value != 1]
    absent = [name for name in expected if name not in states]
    faults = [f"{printable(name)} is down" for name in down] + [f"{name} is not merged" for name in absent]
    return ", ".join(faults), f"up: {', '.join(printable(name) for name in states)}"


def sample_names(body: bytes) -> frozenset[str]:
    """Return the names of all samples in an exposition; other lines are ignored."""
    return frozenset(name.decode("ascii") for name in set(_SAMPLE_NAME.findall(body)))


@dataclass(frozen=True, slots=True)
class ExpositionLines:
    """How many lines of a body look like an exposition, and the name of the first sample."""

    samples: int
    types: int
    malformed: int
    first: str


def is_exposition(answer: Answered) -> bool:
    """Return whether every line of the answer's body, as far as it was read, belongs to an exposition."""
    lines = exposition_lines(answer.body, whole=answer.end == "whole")
    return bool(lines.samples and lines.types and not lines.malformed)


def exposition_lines(body: bytes, *, whole: bool) -> ExpositionLines:
    """Count the lines of a body by kind; count the last line only if the body is `whole`."""
    lines = body.split(b"\n")
    if not whole and len(lines) > 1:
        lines.pop()
    samples = [match for match in map(_SAMPLE.fullmatch, lines) if match]
    metadata = [match for match in map(_META.fullmatch, lines) if match]
    types = [
        match for match in metadata if match["kind"] == b"TYPE" and (match["rest"] or b"").strip() in _TYPES
    ]
    harmless = sum(1 for line in lines if not line.strip() or line.startswith(b"#"))
    first = printable(samples[0]["name"]) if samples else ""
    return ExpositionLines(len(samples), len(types), len(lines) - harmless - len(samples), first)


@dataclass(slots=True)
class _Scan:
    """The state of reading one exposition line by line."""

    types: dict[bytes, bytes] = field(default_factory=dict)
    helped: set[bytes] = field(default_factory=set)
    families: set[bytes] = field(default_factory=set)
    series: set[tuple[object, ...]] = field(default_factory=set)
    sampled: set[bytes] = field(default_factory=set)
    current: bytes = b""

    def faults(self, body: bytes) -> Iterator[str]:
        """Yield every fault with its line number."""
        if not body:
            yield "the body is empty"
            return
        if not body.endswith(b"\n"):
            yield "the last line has no end: the exposition is cut off"
        try:
            body.decode("utf-8")
        except UnicodeDecodeError as error:
            yield f"line {body.count(10, 0, error.start) + 1} is not UTF-8"
        for number, line in enumerate(body.split(b"\n"), start=1):
            if fault := self._line(line):
                yield f"line {number} {fault}: {printable(line)}"

    def _line(self, line: bytes) -> str:
        if not line.strip(b" \t"):
            return ""
        if line.startswith(b"#"):
            return self._comment(line)
        sample = _SAMPLE.fullmatch(line)
        if sample is None:
            return "is malformed"
        labels = _EACH_LABEL.findall(sample["labels"] or b"")
        if len({name for name, _ in labels}) < len(labels):
            return "repeats a label"
        # The same labels in another order, or spaced otherwise, are the same series.
        series = (sample["name"], *sorted(labels))
        if series in self.series:
            return "repeats a series"
        self.series.add(series)
        family = self._family(sample["name"])
        self.sampled.add(family)
        return self._enter(family)

    def _comment(self, line: bytes) -> str:
        meta = _META.fullmatch(line)
        if meta is None:
            return "is malformed" if re.match(rb"#[ \t]+(?:HELP|TYPE)[ \t]", line) else ""
        name, rest = meta["name"], meta["rest"] or b""
        if meta["kind"] == b"HELP":
            if name in self.helped:
                return "is a second HELP"
            self.helped.add(name)
        else:
            if name in self.types:
                return "is a second TYPE"
            if rest.strip() not in _TYPES:
                return "has no type of the text format"
            if name in self.sampled:
                return "comes after samples of its family"
            self.types[name] = rest.strip()
        return self._enter(name)

    def _family(self, name: bytes) -> bytes:
        for suffix in (b"_bucket", b"_sum", b"_count"):
            base = name.removesuffix(suffix)
            if base != name and suffix in _SUFFIXES.get(self.types.get(base, b""), ()):
                return base
        return name

    def _enter(self, family: bytes) -> str:
        if family == self.current:
            return ""
        self.current = family
        if family in self.families:
            return "returns to a family that had ended"
        self.families.add(family)
        return ""
