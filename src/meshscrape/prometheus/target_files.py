"""Read and write targets in Prometheus's file_sd and http_sd formats, with the expected identity.

A target file is a list of groups, `{"targets": ["10.0.0.7:15092"], "labels": {…}}`, in JSON or YAML. The
label `__meshscrape_spiffe_id` is the expected SPIFFE ID; the scrape proxy needs it.
Source: Prometheus, "Configuration", <file_sd_config> and "HTTP SD".
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache
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
        if target.main and target.ready
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
        check_label(name, value, where)
    identity = expected_identity(labels.get(IDENTITY_LABEL), where)
    path = check_path(labels.get(_PATH_LABEL, MERGED_PATH), where)
    kept = {
        name: value for name, value in labels.items()
        if not is_label_of_target(name)
    }  # fmt: skip
    return [Target(*_address(address, where), identity, kept, path) for address in addresses]


def check_label(name: Any, value: Any, where: str) -> None:
    """Raise InputError for what cannot be a label of a target."""
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


def expected_identity(text: str | None, where: str) -> SpiffeId:
    """Return the SPIFFE ID of a workload. Raise InputError for anything else."""
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


def check_path(path: str, where: str) -> str:
    """Return the path of a target as it is. Raise InputError for one that is not plain."""
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


def is_label_of_target(name: str) -> bool:
    """Return whether a target file writes a field of the target as this label."""
    return name in (IDENTITY_LABEL, _PATH_LABEL, _SCHEME_LABEL)


def parse_authority(text: str) -> tuple[str, int] | None:
    """Return IP address and port of `IP:port` (IPv6 in brackets); None for anything else."""
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


# Cached for the same reason.
_parsed_address = lru_cache(1 << 16)(parse_authority)
