"""Read and write targets in Prometheus's file_sd and http_sd formats, with the expected identity.

A target file is a list of groups, `{"targets": ["10.0.0.7:15092"], "labels": {…}}`, in JSON or YAML. The
label `__meshscrape_spiffe_id` is the expected SPIFFE ID; the scrape proxy needs it.
Source: Prometheus, "Configuration", <file_sd_config> and "HTTP SD".
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio.names import MERGED_PATH
from meshscrape.kube.yaml_text import load_text
from meshscrape.prometheus.targets import Target
from meshscrape.spiffe.ids import SpiffeId

IDENTITY_LABEL = "__meshscrape_spiffe_id"
META_IDENTITY_LABEL = "__meta_meshscrape_spiffe_id"
_PATH_LABEL, _SCHEME_LABEL = "__metrics_path__", "__scheme__"
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_AUTHORITY = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<v4>[0-9.]+)):(?P<port>[0-9]{1,5})")
# The characters of a path in RFC 3986, without percent-encoding, because paths are compared as text.
_PATH = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@-]*)+")
_PASSED = ("__scrape_interval__", "__scrape_timeout__")


def target_file(targets: Iterable[Target]) -> list[dict[str, Any]]:
    """Return the groups of a target file for the scrape proxy."""
    return [
        {
            "targets": [target.authority],
            "labels": {
                **target.labels, _PATH_LABEL: target.path, IDENTITY_LABEL: str(target.spiffe_id),
            },
        }
        for target in targets
    ]  # fmt: skip


def http_sd(targets: Iterable[Target]) -> list[dict[str, Any]]:
    """Return the scrape proxy's answer to Prometheus's HTTP SD: every target, in plain http to the proxy.

    The expected identity is the label `__meta_meshscrape_spiffe_id`, for relabelling.
    """
    return [
        {
            "targets": [target.authority],
            "labels": {
                **target.labels, _SCHEME_LABEL: "http", _PATH_LABEL: target.path,
                META_IDENTITY_LABEL: str(target.spiffe_id),
            },
        }
        for target in targets
        if target.main
    ]  # fmt: skip


def parse_target_file(content: bytes, where: str) -> tuple[Target, ...]:
    """Parse a target file into its targets, in order; `where` is its name for errors.

    The address must be an IP address with a port (a name could resolve differently later), the path must not
    have a query, and the identity must be a SPIFFE ID. Otherwise an InputError names the group.
    """
    groups = _document(content, where)
    if not isinstance(groups, list):
        raise InputError("is not a list of target groups", where=where, remedy="write file_sd groups")
    targets: dict[tuple[str, str], Target] = {}
    for number, group in enumerate(groups, start=1):
        for target in _targets(group, f"{where}: group {number}"):
            if targets.setdefault((target.authority, target.path), target) is not target:
                raise InputError(
                    f"{target.authority}{target.path} occurs twice",
                    where=f"{where}: group {number}",
                    remedy="announce each target once",
                )
    return tuple(targets.values())


Known = Mapping[tuple[str, str], Target]


def parse_http_sd(answer: bytes, where: str, known: Known = MappingProxyType({})) -> tuple[Target, ...]:
    """Parse the answer of a scrape proxy's HTTP SD (see `http_sd`). Raise InputError for anything else.

    `known` are targets by authority and path. One that did not change is the same object in the result: this
    takes a third of the time, and a comparison by identity finds the others.
    """
    try:
        groups = json.loads(answer)
    except (ValueError, RecursionError):
        raise InputError("this is no answer of HTTP SD", where=where, remedy="check the address") from None
    targets: list[Target] = []
    for number, group in enumerate(groups if isinstance(groups, list) else (), start=1):
        if known and (same := _unchanged(group, known)) is not None:
            targets.append(same)
            continue
        labels = dict(group.get("labels") or {}) if isinstance(group, dict) else {}
        labels.pop(_SCHEME_LABEL, None)
        labels[IDENTITY_LABEL] = labels.pop(META_IDENTITY_LABEL, None)
        targets += _targets({**group, "labels": labels} if labels else group, f"{where}: group {number}")
    return tuple(targets)


def _unchanged(group: Any, known: Known) -> Target | None:
    """Return the known target that `http_sd` writes as exactly this group."""
    try:
        (authority,), labels = group["targets"], group["labels"]
        target = known[authority, labels[_PATH_LABEL]]
        same = (
            len(group) == 2
            and len(labels) == len(target.labels) + 3
            and labels[_SCHEME_LABEL] == "http"
            and labels[META_IDENTITY_LABEL] == str(target.spiffe_id)
            and all(labels[name] == value for name, value in target.labels.items())
        )
    except (KeyError, TypeError, ValueError):
        return None
    return target if same else None


def _document(content: bytes, where: str) -> Any:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError("is not UTF-8", where=where) from None
    return load_text(text, where)


def _targets(group: Any, where: str) -> list[Target]:
    if not isinstance(group, dict) or not group.keys() <= {"targets", "labels"}:
        raise InputError("is not a target group", where=where, remedy="write {targets: […], labels: {…}}")
    addresses, labels = group.get("targets"), group.get("labels") or {}
    if not isinstance(addresses, list) or not all(isinstance(address, str) for address in addresses):
        raise InputError("`targets` is not a list of addresses", where=where)
    if not isinstance(labels, dict):
        raise InputError("`labels` is not a mapping", where=where)
    for name, value in labels.items():
        _check_label(name, value, where)
    identity = _identity(labels.get(IDENTITY_LABEL), where)
    path = _path(labels.get(_PATH_LABEL, MERGED_PATH), where)
    kept = {
        name: value for name, value in labels.items()
        if name not in (IDENTITY_LABEL, _PATH_LABEL, _SCHEME_LABEL)
    }  # fmt: skip
    return [Target(*_address(address, where), identity, kept, path) for address in addresses]


def _check_label(name: Any, value: Any, where: str) -> None:
    if not isinstance(name, str) or not isinstance(value, str) or (kind := _kind_of_label(name)) == "none":
        raise InputError(f"{str(name)[:100]!a} is not a label with a text value", where=where)
    if name == _SCHEME_LABEL and value != "https":
        raise InputError(
            f"`__scheme__` is {value[:20]!a}",
            where=where,
            remedy="omit it: the proxy always uses mutual TLS",
        )
    if kind == "reserved":
        raise InputError(
            f"the scrape proxy cannot pass on the label {name}",
            where=where,
            remedy="remove it; a target is an address, a path and an identity",
        )


@lru_cache(1 << 10)
def _kind_of_label(name: str) -> str:
    """Return `none` for an invalid label name, `reserved` for one that Prometheus interprets, else `kept`."""
    if not _LABEL.fullmatch(name):
        return "none"
    known = name in (IDENTITY_LABEL, _PATH_LABEL, _SCHEME_LABEL, *_PASSED) or name.startswith("__meta_")
    return "reserved" if name.startswith("__") and not known else "kept"


def _identity(text: str | None, where: str) -> SpiffeId:
    if text is None:
        raise InputError(
            "no expected SPIFFE ID", where=where, remedy=f"add the label {IDENTITY_LABEL}: spiffe://…"
        )
    try:
        identity = _parsed_identity(text)
    except InputError as error:
        raise InputError(error.what, where=where, remedy=error.remedy) from None
    if not identity.path:
        raise InputError(f"{identity} is a trust domain, not a workload", where=where)
    return identity


def _path(path: str, where: str) -> str:
    if not _is_plain_path(path):
        raise InputError(
            f"{path[:100]!a} is not a plain path", where=where, remedy="omit the query, %XX, // and dots"
        )
    return path


def _address(text: str, where: str) -> tuple[str, int]:
    endpoint = _parsed_address(text)
    if endpoint is None:
        raise InputError(
            f"{text[:100]!a} is not an IP address with a port",
            where=where,
            remedy="write 10.0.0.7:15092 or [fd00::7]:15092",
        )
    return endpoint


# A cache, because a file with thousands of targets is read again as a whole when one target changes.
_parsed_identity = lru_cache(1 << 12)(SpiffeId.parse)


@lru_cache(1 << 8)
def _is_plain_path(path: str) -> bool:
    dots = any(part in (".", "..") for part in path.split("/"))
    return _PATH.fullmatch(path) is not None and "//" not in path and not dots


@lru_cache(1 << 16)
def _parsed_address(text: str) -> tuple[str, int] | None:
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        return None
    try:
        address = ipaddress.ip_address(match["v6"] or match["v4"])
    except ValueError:
        return None
    port = int(match["port"])
    if not 0 < port < 65536 or address.is_unspecified or address.is_multicast:
        return None
    return str(address), port
