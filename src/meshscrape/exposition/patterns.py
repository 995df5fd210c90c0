"""The text format as regular expressions over whole chunks of lines, which make the merge fast.

Two patterns define what is valid. `families_end` reads families as client libraries write them (a TYPE line,
then samples of that name); `lines_end` reads any valid lines. One call reads a whole chunk at about 1 GB/s,
because PCRE2 compiles a pattern to machine code. Every part is possessive, so nothing is tried twice and the
time is linear for any input.

One rule is hard: a line must not repeat a label name, and a regular expression cannot express that for any
number of labels. But most lines of a family have the same labels in the same order. So the first line of a
run captures its label names (groups `l0`, `l1`, …) and must not repeat one. The other lines of the run must
have the same names, which is a comparison. A line with other labels begins a new run.

RE2 would not need possessive parts, but it has no captures to compare with. With RE2, each sequence of label
names had to be learned and compiled at run time, families needed a second pass, and one pass took 1.8 ns per
byte (PCRE2: 0.8). All patterns here are fixed; none is built from input.
"""

from __future__ import annotations

import pcre2

from meshscrape.exposition.grammar import TEXT_TYPES

# The patterns do not match lines with more labels; the caller parses those one by one.
MAX_LABELS = 32

NAME = rb"[a-zA-Z_:][\w:]*+"
# Labels that begin with __ are reserved for Prometheus itself.
_LABEL_NAME = rb"(?!\d|__)\w++"
# The numbers that Go's ParseFloat reads without overflow, up to a length. The caller checks longer numbers.
_NUMBER = (
    rb"(?:[+-]?+(?:(?:\d{1,200}+(?:\.\d*+)?+|\.\d++)(?:[eE](?:[+-]?+\d{1,2}+(?!\d)|-\d{3}+))?+"
    rb"|(?i:inf(?:inity)?+))|(?i:nan))"
)
# Whole numbers come first, because they are the most frequent.
_END = rb"[ ](?:\d{1,15}+\n|" + _NUMBER + rb"(?:[ ]\d{1,18}+)?+\n)"
_PLAIN = rb"[\x01-\x09\x0b-\x21\x23-\x5b\x5d-\x7f]"
_ESCAPE = rb'\\(?:\\|n|")'
# The whole of UTF-8 beyond ASCII, as in the Unicode standard, table 3-7.
_UTF8 = (
    rb"[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}"
    rb"|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}"
    rb"|\xf4[\x80-\x8f][\x80-\xbf]{2}"
)
# Calling a group is slow but keeps the compiled pattern small. These groups are for rare values.
_DEFINITIONS = rb"""
(?(DEFINE)
    (?<utf8> UTF8 )
    (?<beyond_ascii> (?: (?&utf8) | ESCAPE | PLAIN )*+ )
    (?<number> NUMBER )
)
"""
# expfmt reads the values of `le` and `quantile` as numbers in histograms and summaries.
_VALUE = rb"""
" (?(?<= \Wle=" | \Wquantile=" )
    (?: \+Inf | \d{1,15}+ (?:\.\d++)?+ (?=") | (?&number) )
  | PLAIN*+ (?: ESCAPE PLAIN*+ )*+ (?: (?!") (?&beyond_ascii) )?+
  ) "
"""
_TYPES = b"|".join(TEXT_TYPES)
_TYPE_LINE = rb"\#[ ]TYPE[ ]NAME[ ](?:" + _TYPES + rb")\n"
_HELP = rb"(?: [\x01-\x09\x0b-\x5b\x5d-\x7f]++ | \\(?:\\|n) | (?&utf8) )*+ \n"
_HELP_LINE = rb"\#[ ]HELP[ ]NAME[ ]" + _HELP
# This selects the samples of a family: of the groups p, h and s, the group of the family's type is empty. The
# other two capture a line feed, which cannot follow a name.
_FAMILY_HEAD = rb"""
(?: \#[ ]HELP[ ](?<help>NAME)[ ] HELP_TEXT (?= \#[ ]TYPE[ ]\g{help}[ ] ) )?+
\#[ ]TYPE[ ](?<name>NAME)[ ]
(?| (?:counter|gauge|untyped) (?<p>) (?=(?<h>\n)) (?=(?<s>\n))
  | histogram (?=(?<p>\n)) (?<h>) (?=(?<s>\n))
  | summary (?=(?<p>\n)) (?=(?<h>\n)) (?<s>)
) \n
""".replace(b"HELP_TEXT", _HELP)
_FAMILY_SAMPLE = rb"\g{name}(?> \g{p} | \g{h}_(?:bucket|sum|count) | \g{s}(?:_sum|_count)?+ )"
_COMMENT = rb"[ \t]*+ \# (?! [ \t]++ (?:HELP|TYPE) [ \t\n] ) [^\n]*+ \n"
_NOISE = rb"(?m)^(?: [ \t]*+\n | " + _COMMENT + rb")++"
# Any valid lines, without comparing label names. It has no captures, which would cost 0.3 µs for each match.
_LOOSE_LINES = (
    rb"(?:NAME(?:\{(?:LABEL=VALUE(?:,LABEL=VALUE)*+,?+)?+\})?+"
    + _END
    + rb"|"
    + _TYPE_LINE
    + rb"|"
    + _HELP_LINE
) + rb")"
# Spaces stay in valid lines, in lines of metadata, and in quotes, even if the last quote is missing.
_NOT_HERE = (
    rb"(?m)(?:^%s++ | ^[ \t]*+\#[^\n]*+" % _LOOSE_LINES
    + rb""" | "[^"\\\n]*+ (?:\\.[^"\\\n]*+)*+ "?+) (*SKIP)(*FAIL)"""
)
_NEEDLESS = rb"^[ \t]++ | (?<![ \t])[ \t]++(?=[{},=]|$) | (?<=[{,=])[ \t]++"
_NEEDED = rb"(?<![ \t])(?:[ \t]{2,}+|\t) | (?<=\})(?=[^ \t\n])"
_SPACED_METADATA = rb"""(?m)^ (?! \#[ ](?:HELP|TYPE)[ ]NAME[ ](?![ \t]) )
[ \t]*+\#[ \t]++(?<keyword>HELP|TYPE)[ \t]++(?<name>NAME)(?:[ \t]++|(?=\n))"""
_OPENMETRICS_TYPE = rb"(?m)^\#[ ]TYPE[ ]NAME[ ]\K(?i:unknown|info|stateset|gaugehistogram)[ \t]*+$"


def _first_labels() -> bytes:
    """Return the pattern for the labels of a run's first line, which captures distinct names.

    Where the labels end, the next group captures the preceding character, which is not a letter. Otherwise
    it would keep a name from the previous run. Groups after that one may keep theirs: nothing reads them.
    """
    rest = b""
    for number in reversed(range(MAX_LABELS)):
        comma = rb'(?<="),' if number else b""
        earlier = b"|".join(rb"\g{l%d}" % before for before in range(number))
        distinct = rb"(?!(?:" + earlier + rb")=)" if earlier else b""
        label = comma + distinct + rb"(?<l%d>LABEL)=VALUE" % number
        rest = rb"(?>(?|" + label + rest + rb"|(?<=(?<l%d>\W))))" % number
    return rb'(?:\{%s(?:(?<="),)?+\})?+' % rest


def _same_labels() -> bytes:
    """Return the pattern for the labels of a run's other lines: the captured names in the same order."""
    opened = [
        rb"(?:%s(?=\w)\g{l%d}=VALUE" % (b"," if number else b"", number) for number in range(MAX_LABELS)
    ]
    return rb'(?:\{%s%s(?:(?<="),)?+\})?+' % (b"".join(opened), rb")?+" * MAX_LABELS)


def _run(name: bytes) -> bytes:
    """Return the pattern for one or more samples with the same labels, whose names match `name`."""
    return name + _first_labels() + _END + rb"(?:" + name + _same_labels() + _END + rb")*+"


def _compile(pattern: bytes) -> pcre2.Pattern:
    pattern = _DEFINITIONS + pattern
    for part, text in (
        (b"VALUE", _VALUE),
        (b"LABEL", _LABEL_NAME),
        (b"NAME", NAME),
        (b"UTF8", _UTF8),
        (b"ESCAPE", _ESCAPE),
        (b"PLAIN", _PLAIN),
        (b"NUMBER", _NUMBER),
    ):
        pattern = pattern.replace(part, text)
    try:
        return pcre2.compile(pattern, pcre2.VERBOSE)
    except pcre2.LibraryError:
        # The system forbids memory that is writable and executable (MemoryDenyWriteExecute). Without
        # machine code the result is the same, ten times slower.
        return pcre2.compile(pattern, pcre2.VERBOSE, jit=False)


# \G anchors a search at its start. PCRE2 would run an anchored match without machine code.
_FAMILIES = _compile(rb"\G(?:" + _FAMILY_HEAD + rb"(?:" + _run(_FAMILY_SAMPLE) + rb")*+)*+")
_ANY_LINES = rb"(?:" + _run(b"NAME") + rb"|" + _TYPE_LINE + rb"|" + _HELP_LINE + rb")"
_LINES = _compile(rb"\G" + _ANY_LINES + rb"*+")
# A line where no valid line begins, and those after it that begin in no way as one.
_OTHER = rb"(?m)^(?:%s++(*SKIP)(*FAIL)|[^\n]*+\n(?:(?![\w:]++[ {]|\#)[^\n]*+\n)*+)"
_BROKEN, _ODD = (_compile(_OTHER % valid) for valid in (_LOOSE_LINES, _ANY_LINES))
_NOISY = _compile(_NOISE)
_STRAY_BACKSLASH = _compile(rb'\\[\\n"](*SKIP)(*FAIL)|\\')
# Where this does not match, `tidied` has nothing to do, except perhaps in the first line. No part begins with
# `^`, so that PCRE2 skips the bytes with which none begins.
_UNTIDY = _compile(
    rb"[ ][ \n]|\t|\n[ ]|[{,=][ ]|[ ][{},=]|\}[^ ]|\n\#[ ](?:TYPE[ ]NAME[ ][isu]|HELP[ ]NAME\n|[ \t])"
)
# What `tidied` replaces, and by what.
_TIDY = (
    (_compile(_SPACED_METADATA), rb"# \g<keyword> \g<name> "),
    (_compile(_OPENMETRICS_TYPE), b"untyped"),
    (_compile(_NOT_HERE + b"|" + _NEEDLESS), b""),
    (_compile(_NOT_HERE + b"|" + _NEEDED), b" "),
)
# Whether all of them are machine code.
FAST = all(
    each.jit
    for each in (
        _FAMILIES,
        _LINES,
        _BROKEN,
        _ODD,
        _NOISY,
        _STRAY_BACKSLASH,
        _UNTIDY,
        *(each for each, _ in _TIDY),
    )
)


def families_end(data: bytes, start: int) -> int:
    """Return the end of the families that begin at `start` and look as client libraries write them."""
    return _end(_FAMILIES, data, start)


def lines_end(data: bytes, start: int) -> int:
    """Return the end of the valid lines that begin at `start`."""
    return _end(_LINES, data, start)


def without_odd_lines(lines: bytes) -> bytes:
    """Return the valid lines of `lines` (whole lines)."""
    lines = _without(_BROKEN, lines)
    return lines if lines_end(lines, 0) == len(lines) else _without(_ODD, lines)


def without_noise(lines: bytes) -> bytes:
    """Return `lines` (whole lines) without blank lines and without comments other than HELP and TYPE."""
    return _without(_NOISY, lines)


def tidied(lines: bytes) -> bytes:
    """Return `lines` (whole lines) with one space wherever a parser needs one, and no other between parts.

    Types that only OpenMetrics has become untyped. A malformed line stays malformed.
    """
    if not lines.startswith((b" ", b"#")) and _UNTIDY.search(lines) is None:
        return lines
    for pattern, replacement in _TIDY:
        lines = _substituted(pattern, replacement, lines)
    return lines


def doubled_backslashes(data: bytes) -> bytes:
    r"""Return `data` with each backslash doubled that does not begin an escape, as in `C:\temp`."""
    return _substituted(_STRAY_BACKSLASH, rb"\\\\", data)


def _end(pattern: pcre2.Pattern, data: bytes, start: int) -> int:
    try:
        found = pattern.search(data, start)
    except pcre2.LibraryError:
        return start  # PCRE2 reached its limit on work; the caller parses the next line alone
    return start if found is None else int(found.end())


def _without(pattern: pcre2.Pattern, lines: bytes) -> bytes:
    return _substituted(pattern, b"", lines)


def _substituted(pattern: pcre2.Pattern, replacement: bytes, data: bytes) -> bytes:
    result: bytes = pattern.sub(replacement, data)
    return result
