"""Write and read one target as a short list, in the form that scrape proxies keep and tell each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio.host_port import host_port
from meshscrape.prometheus.target_files import (
    check_label,
    check_path,
    expected_identity,
    is_label_of_target,
    parse_authority,
)
from meshscrape.prometheus.targets import Target


def target_row(target: Target) -> list[Any]:
    """Return the target as data for `json.dumps`: address, port, identity, labels, path, main, ready."""
    return [
        target.address, target.port, str(target.spiffe_id), dict(target.labels), target.path, target.main,
        target.ready,
    ]  # fmt: skip


def parse_target_row(
    row: Any,
    where: str,
    same: Callable[[str], str] = str,
    same_name: Callable[[str], str] = str,
) -> Target:
    """Return the target that `target_row` wrote, with the same checks as one of a target file.

    `same` returns one object for equal values, `same_name` for equal names of labels: this saves memory.
    Raises InputError for anything else.
    """
    if not isinstance(row, list) or len(row) != 7:
        raise InputError("this is not a target", where=where)
    address, port, identity, labels, path, main, ready = row
    if not (
        isinstance(address, str)
        and type(port) is int
        and isinstance(identity, str)
        and isinstance(labels, dict)
        and isinstance(path, str)
        and isinstance(main, bool)
        and isinstance(ready, bool)
    ):
        raise InputError("this is not a target", where=where)
    numeric = parse_authority(host_port(address, port))
    if numeric is None:
        raise InputError(f"{address[:100]!a} port {port} is not an IP address with a port", where=where)
    for name, value in labels.items():
        check_label(name, value, where)
        if is_label_of_target(name) or not _is_unicode(value):
            raise InputError(f"the label {name} is none that a target can have", where=where)
    kept = {same_name(name): same(value) for name, value in labels.items()}
    expected, plain = expected_identity(identity, where), same(check_path(path, where))
    return Target(numeric[0], port, expected, kept, plain, main, ready)


def _is_unicode(text: str) -> bool:
    """Return whether the text can be written as UTF-8: JSON can spell half of a character."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False
