"""SPIFFE IDs: parsed strictly, spelled in exactly one way.

Source: "The SPIFFE Identity and Verifiable Identity Document", section 2 (SPIFFE-ID.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from meshscrape.errors import InputError

SCHEME = "spiffe://"
MAX_ID_BYTES = 2048
MAX_TRUST_DOMAIN_BYTES = 255
# The code of the error for every text that is no SPIFFE ID.
NOT_AN_ID = "not-a-spiffe-id"

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")
# Kubernetes: a namespace is an RFC 1123 label, a service account an RFC 1123 subdomain.
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_REMEDY = "write spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT"


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """An identity: `trust_domain`, and `path` that is empty or starts with a slash.

    Raises InputError for anything outside the specification, so that every SpiffeId is valid.
    """

    trust_domain: str
    path: str

    def __post_init__(self) -> None:
        reason = _fault(self.trust_domain, self.path)
        if reason:
            shown = f"{SCHEME}{self.trust_domain}{self.path}"[:200]
            raise InputError(f"{shown!a} is not a SPIFFE ID: {reason}", remedy=_REMEDY, code=NOT_AN_ID)

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Return the identity that `text` spells. Raise InputError when `text` is not exactly a SPIFFE ID."""
        if not text.startswith(SCHEME):
            raise InputError(
                f"{text[:200]!a} is not a SPIFFE ID: it does not start with {SCHEME}",
                remedy=_REMEDY,
                code=NOT_AN_ID,
            )
        trust_domain, slash, path = text.removeprefix(SCHEME).partition("/")
        return cls(trust_domain, slash + path)

    def __str__(self) -> str:
        return f"{SCHEME}{self.trust_domain}{self.path}"

    @property
    def namespace(self) -> str | None:
        """Return N of a path `/ns/N/sa/S`, else None."""
        workload = self._workload()
        return workload[0] if workload else None

    @property
    def service_account(self) -> str | None:
        """Return S of a path `/ns/N/sa/S`, else None."""
        workload = self._workload()
        return workload[1] if workload else None

    def _workload(self) -> tuple[str, str] | None:
        match self.path.split("/"):
            case ["", "ns", namespace, "sa", service_account]:
                return namespace, service_account
        return None


def workload_id(trust_domain: str, namespace: str, service_account: str) -> SpiffeId:
    """Return the identity of a service account. Raise InputError for names that Kubernetes refuses."""
    if not _LABEL.fullmatch(namespace):
        raise InputError(f"{namespace[:200]!a} is not a Kubernetes namespace")
    if len(service_account) > 253 or not all(_LABEL.fullmatch(part) for part in service_account.split(".")):
        raise InputError(f"{service_account[:260]!a} is not the name of a Kubernetes service account")
    return SpiffeId(trust_domain, f"/ns/{namespace}/sa/{service_account}")


def check_trust_domain(text: str) -> str:
    """Return `text` when it is the name of a trust domain, else raise InputError."""
    return SpiffeId(text, "").trust_domain


def _fault(trust_domain: str, path: str) -> str:
    if not _TRUST_DOMAIN.fullmatch(trust_domain):
        return "a trust domain is made of lower-case letters, digits, dots, dashes and underscores"
    if len(trust_domain) > MAX_TRUST_DOMAIN_BYTES:
        return f"a trust domain has at most {MAX_TRUST_DOMAIN_BYTES} bytes"
    if not path:
        return ""
    if len(SCHEME) + len(trust_domain) + len(path) > MAX_ID_BYTES:
        return f"it has at most {MAX_ID_BYTES} bytes"
    first, *segments = path.split("/")
    if first:
        return "a path starts with a slash"
    for segment in segments:
        if not segment:
            return "a path has no empty segment and no trailing slash"
        if segment in (".", ".."):
            return "a path has no dot segments"
        if not _SEGMENT.fullmatch(segment):
            return "a path is made of letters, digits, dots, dashes and underscores"
    return ""
