"""One visit to a port: its address, the visitor's identity, and the request (pure data)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from meshscrape.istio.host_port import host_port
from meshscrape.istio.names import MERGED_PATH

IdentityKind: TypeAlias = Literal[
    "plain", "anonymous", "scraper", "stranger", "short-lived", "expired", "workload"
]
ProbeKind: TypeAlias = Literal["http", "certificate", "legacy-tls", "resumption", "silence"]

# How many bytes of a body a probe reads. A merged exposition must be read completely to be judged.
WHOLE = 256 * 2**20
HEAD = 4096


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity that a probe uses; `workload` is the NAMESPACE/NAME for kind "workload"."""

    kind: IdentityKind
    workload: str = ""


PLAIN = Identity("plain")
ANONYMOUS = Identity("anonymous")
SCRAPER = Identity("scraper")
STRANGER = Identity("stranger")
SHORT_LIVED = Identity("short-lived")
EXPIRED = Identity("expired")


@dataclass(frozen=True, slots=True)
class Probe:
    """One visit. `limit` is how many bytes of a body are read, `version` the TLS version of some kinds.

    `path` may hold characters up to U+00FF: each is sent as one byte. `headers` are sent in addition to the
    usual ones. They may hold a token, so they are never shown.
    """

    address: str
    port: int
    identity: Identity
    kind: ProbeKind = "http"
    method: str = "GET"
    path: str = MERGED_PATH
    limit: int = HEAD
    version: str = ""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @property
    def target(self) -> str:
        """Return `host:port`, with brackets around an IPv6 address."""
        return host_port(self.address, self.port)


@dataclass(frozen=True, slots=True)
class Case:
    """A probe, and its name in a finding."""

    probe: Probe
    label: str = ""
