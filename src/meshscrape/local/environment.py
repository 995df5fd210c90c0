"""Build the environment of a mesh's processes, and expand `$(VAR)` in the commands of manifests."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from meshscrape.errors import InputError

# The variables that a child inherits from the user: none that could be a secret or configure an agent.
PASSED = ("HOME", "LANG", "LC_ALL", "LOGNAME", "TMPDIR", "TZ", "USER")
_REFERENCE = re.compile(r"\$(\$\([A-Za-z_][A-Za-z0-9_]*\))|\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


def base_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of every child. PATH begins with the directory of this Python's scripts."""
    scripts = str(Path(sys.executable).parent)
    kept = {name: env[name] for name in PASSED if name in env}
    return {**kept, "PATH": f"{scripts}{os.pathsep}{env.get('PATH', os.defpath)}", "PYTHONUNBUFFERED": "1"}


def substitute(text: str, variables: Mapping[str, str], where: str) -> str:
    """Return `text` with `$(VAR)` replaced, as Kubernetes does in commands; `$$(VAR)` stays as `$(VAR)`.

    Kubernetes leaves a reference to an unknown variable unchanged. Here it is an InputError at `where`,
    because the mistake would otherwise show up far from its cause.
    """

    def value(match: re.Match[str]) -> str:
        escaped, name = match.groups()
        if escaped:
            return str(escaped)
        if name not in variables:
            raise InputError(
                f"$({name}) is not set",
                where=where,
                remedy=f"use one of {', '.join(sorted(variables))}, or declare it in the container's env",
            )
        return variables[name]

    return _REFERENCE.sub(value, text)


def command(line: str, variables: Mapping[str, str], where: str) -> tuple[str, ...]:
    """Split a command line with a shell's quoting into words; a variable's value never splits a word."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise InputError(
            f"the local command is malformed ({error})", where=where, remedy="balance the quotes"
        ) from error
    if not words:
        raise InputError("the local command is empty", where=where, remedy="write the command to run")
    return tuple(substitute(word, variables, where) for word in words)
