"""Reading expositions back with parsers that are not ours, and writing random ones."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as parse_text

Series = tuple[str, tuple[tuple[str, str], ...], str]


def text_series(body: bytes) -> list[Series]:
    """Name, labels and value of every sample, as prometheus_client reads them from lines of text.

    The text parser's families rename counters; its samples by themselves do not.
    """
    seen: list[Series] = []
    for family in parse_text(body.decode()):
        for sample in family.samples:
            name = sample.name
            if family.type == "counter" and f"\n{name}" not in f"\n{body.decode()}":
                name = name.removesuffix("_total")
            seen.append((name, tuple(sorted(sample.labels.items())), repr(float(sample.value))))
    return seen


def check_text_structure(body: bytes) -> None:
    """What expfmt refuses beyond single lines: a second TYPE or HELP, or TYPE after samples of the name."""
    typed: dict[str, str] = {}
    helped: set[str] = set()
    sampled: set[str] = set()
    for line in body.decode().split("\n")[:-1]:
        match = re.match(r"# (HELP|TYPE) (\S+) ?(.*)", line)
        if match is None:
            assert not line.startswith("#"), line
            sampled.add(_family(re.split(r"[{ ]", line)[0], typed))
            continue
        keyword, name, text = match.groups()
        if keyword == "TYPE":
            assert name not in typed and name not in sampled, f"second or late TYPE: {line}"
            assert _family(name, typed) == name, f"TYPE of another family's series: {line}"
            typed[name] = text
        else:
            assert name not in helped, f"second HELP: {line}"
            helped.add(name)
    assert body.endswith(b"\n") or not body


def _family(name: str, typed: dict[str, str]) -> str:
    if name in typed:
        return name
    base, _, suffix = name.rpartition("_")
    distribution = {"histogram": ("bucket", "sum", "count"), "summary": ("sum", "count")}
    return base if suffix in distribution.get(typed.get(base, ""), ()) else name


_NAMES = ["a", "a_total", "a_sum", "a_count", "a_bucket", "b", "b_count", "b_created", "c:d", "a_sum_count"]
_names = st.sampled_from(_NAMES)
_values = st.sampled_from(["0", "1", "-2", "1.5", "NaN", "+Inf", "-Inf", "1e3", ".5", "7.", "1E-300", "2e99"])
_label_values = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=4).map(
    lambda text: text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
)
_labels = st.dictionaries(
    st.sampled_from(["x", "y", "le", "quantile", "_z", "if"]), _label_values, max_size=3
)


def _rendered(name: str, labels: dict[str, str], value: str, time: str) -> str:
    braces = "{" + ",".join(f'{key}="{text}"' for key, text in labels.items()) + "}" if labels else ""
    return f"{name}{braces} {value}{time}"


samples = st.builds(_rendered, _names, _labels, _values, st.sampled_from(["", "", " 1700000000000", " 0"]))
_metadata = st.one_of(
    st.builds(
        "# TYPE {} {}".format,
        _names,
        st.sampled_from(["counter", "gauge", "histogram", "summary", "untyped", "unknown", "info", "what"]),
    ),
    st.builds(
        "# HELP {} {}".format, _names, st.sampled_from(["text", "", 'a "quote"', "b\\\\c\\n", "\\x", "é"])
    ),
    st.just("# UNIT a seconds"),
)
_odd = st.sampled_from(
    [
        "",
        "# EOF",
        "# a comment",
        "#",
        "a",
        "a 1 2 3",
        "a{",
        'a{x="1" 1',
        'a{x="1",x="2"} 1',
        'a{__name__="b"} 1',
        'a{x="\\q"} 1',
        "a 0x10",
        "a 1_000",
        "a 1e999",
        "a " + "9" * 400,
        "a 1 -5",
        "1a 1",
        '  a \t{ x = "1" , y="2", }\t 3 \t 4 ',
        'a{x="1",} 1',
        "a{} 1",
        "a\x00 1",
        'a{x="\x00"} 1',
        "a nan",
        "b inf",
        "b 1\r",
        'a_bucket{le="odd"} 1',
        'a{x="1"} 1 # {t="5"} 0.5 1.5',
        "<html>",
        "# TYPE a",
        "#TYPE a counter",
        "# TYPE 1a counter",
    ]
)
lines = st.lists(st.one_of(samples, samples, _metadata, _odd), max_size=25)
bodies = st.builds(
    lambda rows, junk, end: "\n".join(rows).encode() + junk + end,
    lines,
    st.sampled_from([b"", b"\n\xff\xfe 1\n", b'\na{x="\xc3"} 1\n', b"\n\xed\xa0\x80 1"]),
    st.sampled_from([b"\n", b"", b"\r\n"]),
)


@st.composite
def healthy_families(draw: st.DrawFn, prefix: str) -> list[tuple[str, list[str]]]:
    """Families as client libraries write them, names beginning with `prefix`: (text, sample lines) each."""
    families = []
    for number in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(["counter", "gauge", "histogram", "summary", "untyped"]))
        name = f"{prefix}{number}" + ("_total" if kind == "counter" else "")
        rows = _family_rows(draw, kind, name)
        text = [f"# HELP {name} {draw(st.sampled_from(['h', 'é', '']))}"] if draw(st.booleans()) else []
        text += [f"# TYPE {name} {kind}"] if kind != "untyped" or draw(st.booleans()) else []
        families.append(("".join(f"{line}\n" for line in text + rows), rows))
    return families


def _family_rows(draw: st.DrawFn, kind: str, name: str) -> list[str]:
    keys = draw(st.lists(_label_values, min_size=1, max_size=4, unique=True))
    if kind == "histogram":
        return [
            row
            for key in keys
            for row in (
                f'{name}_bucket{{key="{key}",le="0.5"}} 1',
                f'{name}_bucket{{key="{key}",le="+Inf"}} 3',
                f'{name}_sum{{key="{key}"}} 4.5',
                f'{name}_count{{key="{key}"}} 3',
            )
        ]
    if kind == "summary":
        return [
            row
            for key in keys
            for row in (
                f'{name}{{key="{key}",quantile="0.5"}} NaN',
                f'{name}_sum{{key="{key}"}} 4.5',
                f'{name}_count{{key="{key}"}} 3',
            )
        ]
    return [f'{name}{{key="{key}"}} {draw(st.sampled_from(["0", "1.5", "1e3", "2"]))}' for key in keys]


def split(body: bytes, cuts: Iterable[int]) -> list[bytes]:
    """`body` in chunks, cut at these places (taken modulo its length)."""
    places = sorted({cut % (len(body) + 1) for cut in cuts})
    return [body[a:b] for a, b in zip([0, *places], [*places, len(body)], strict=True)]
