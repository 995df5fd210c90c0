"""The patterns where no memory may be both written and executed, and their time on hostile lines."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time

import pytest

from meshscrape.exposition import patterns

# The child forbids itself what systemd's MemoryDenyWriteExecute forbids a service: PR_SET_MDWE of prctl(2).
HARDENED = """
import ctypes, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):
    sys.exit(77)
from meshscrape.exposition import patterns
data = b'# TYPE a counter\\na{x="1"} 1\\na{x="2"} 2\\nbad\\n'
assert patterns.families_end(data, 0) == len(data) - 4
assert patterns.without_odd_lines(data) == data[:-4]
assert not patterns.FAST
from meshscrape.agent.merged import MergedMetrics
from meshscrape.agent.sources import MergedOptions
MergedMetrics(MergedOptions())
"""


def test_patterns_work_without_executable_memory() -> None:
    """PCRE2 then interprets what it would compile: slower, with the same result, and the agent says so."""
    done = subprocess.run([sys.executable, "-c", HARDENED], capture_output=True, timeout=60)
    if done.returncode == 77:
        pytest.skip("this kernel knows no PR_SET_MDWE (Linux 6.3)")
    assert done.returncode == 0, done.stderr.decode()
    assert b"merging is ten times slower" in done.stderr


HOSTILE = {
    "repeated labels": b"a{" + b'x="1",' * 40_000 + b"} 1\n",
    "many labels": b"a{" + b",".join(b'x%d="1"' % number for number in range(20_000)) + b"} 1\n",
    "commas": b"a{" + b"," * 200_000 + b"} 1\n",
    "quotes": b'a{x="' + b'\\"' * 100_000 + b"\n",
    "backslashes": b'a{x="' + b"\\" * 200_000 + b'"} 1\n',
    "digits": b"a " + b"9" * 200_000 + b"\n",
    "spaces": b"a" + b" " * 200_000 + b"1\n",
    "a long name": b"a" * 200_000 + b"\n",
    "bytes beyond ASCII": b'a{x="' + b"\xc3" * 200_000 + b'"} 1\n',
    "braces": b"a{" * 100_000 + b"\n",
    "short lines": b"a{\n" * 60_000,
    "spaces in braces": b"a{ " * 70_000 + b"\n",
    "spaces before labels": b"a" + b" " * 200_000 + b'{x="1"} 1\n',
    "quotes and spaces": b'a{x="' + b'\\" ' * 70_000 + b"\n",
    "spaces in metadata": b"#" + b" " * 200_000 + b"TYPE a gauge\n",
    "labels of the line before": b'a{b="1",c="2"} 1\na{c="1",b="2",b="3"} 1\n' * 5_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_time_is_linear_in_hostile_lines(kind: str) -> None:
    """200 kB of them cost milliseconds; anything that tried parts twice would take minutes, or give up."""
    data = HOSTILE[kind]
    began = time.process_time()
    for read in (patterns.families_end, patterns.lines_end):
        assert read(data, 0) <= len(data)
    for clean in (
        patterns.without_odd_lines,
        patterns.without_noise,
        patterns.doubled_backslashes,
        patterns.tidied,
    ):
        clean(data)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("line", "tidy"),
    [
        (b" a 1\n", b"a 1\n"),
        (b"# TYPE a unknown\n", b"# TYPE a untyped\n"),
        (b"a 1\n# TYPE b info\n", b"a 1\n# TYPE b untyped\n"),
        (b"a 1\n", b"a 1\n"),
    ],
)
def test_the_first_line_is_tidied_too(line: bytes, tidy: bytes) -> None:
    """Although no line feed comes before it."""
    assert patterns.tidied(line) == tidy


def labelled(*names: str) -> bytes:
    """Return a sample with these labels."""
    return "a{{{}}} 1\n".format(",".join(f'{name}="1"' for name in names)).encode()


NAMES = [f"l{number}" for number in range(patterns.MAX_LABELS + 1)]


@pytest.mark.parametrize("count", [0, 1, 2, 3, patterns.MAX_LABELS])
def test_samples_are_read_at_once(count: int) -> None:
    """Whatever the number of their labels, up to a limit, and whether or not those of the next one differ."""
    line = labelled(*NAMES[:count])
    for last in (line, line.replace(b"}", b",}") if count else line, labelled("x"), b"a 1\n"):
        lines = line + line + last + line
        assert patterns.lines_end(lines, 0) == len(lines)
        family = b"# TYPE a gauge\n" + lines
        assert patterns.families_end(family + b"b 1\n", 0) == len(family)
    assert patterns.lines_end(line + labelled(*NAMES), 0) == len(line)


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(range(4), 2)))
def test_a_line_that_repeats_a_label_is_not_read(first: int, second: int) -> None:
    """Whichever labels it repeats, behind a line of the same number of labels too."""
    names = NAMES[:4]
    names[second] = names[first]
    for before in (b"", b"a 1\n", labelled(*NAMES[:4])):
        assert patterns.lines_end(before + labelled(*names), 0) == len(before)
        assert patterns.without_odd_lines(before + labelled(*names)) == before
