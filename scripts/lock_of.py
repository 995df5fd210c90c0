"""Print the part of the lock that an installation with some extras needs.

lock_of.py [EXTRA…] < requirements.txt, in an environment with the whole lock and meshscrape installed: the
packages' metadata says which needs which.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = "meshscrape"


def needed(extras: Iterable[str]) -> set[str]:
    """Return the canonical names of all packages that meshscrape with these extras needs."""
    found: set[tuple[str, str]] = set()
    waiting = [(ROOT, extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        for text in metadata.requires(name) or ():
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(wanted.name), each) for each in ("", *wanted.extras)]
    return {name for name, _ in found} - {ROOT}


def entries(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Return the entries of a lock: canonical name, and text with its hashes."""
    name, text = "", ""
    for line in lines:
        if started := re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line):
            if name:
                yield name, text
            name, text = canonicalize_name(started[0]), ""
        text += line
    if name:
        yield name, text


if __name__ == "__main__":
    wanted_names = needed(sys.argv[1:])
    sys.stdout.writelines(text for name, text in entries(sys.stdin) if name in wanted_names)
