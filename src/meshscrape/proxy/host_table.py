"""The virtual hosts of all targets, kept up to date at the cost of what changed. Pure.

Addresses where the same identity and paths are expected share one host, so ten thousand pods of five hundred
ServiceAccounts are five hundred hosts. A host's bytes are made anew only when one of its addresses comes or
goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from meshscrape.envoy.scrape_proxy import Expected, by_authority, encoded_authority, encoded_host
from meshscrape.prometheus.targets import Target


@dataclass(slots=True, eq=False)
class _Host:
    """One virtual host: its addresses, each in binary form, and the whole (empty until it is made)."""

    expected: Expected
    authorities: dict[str, bytes] = field(default_factory=dict)
    encoded: bytes = b""


class HostTable:
    """Virtual hosts by what is expected at their addresses."""

    def __init__(self) -> None:
        self._hosts: dict[Expected, _Host] = {}
        self._at: dict[str, dict[str, _Host]] = {}

    def put(self, address: str, targets: Sequence[Target]) -> None:
        """Take the targets at an address in the place of those before.

        Raises InputError when two identities are expected at one port of it.
        """
        now = by_authority(targets)
        for authority, host in self._at.pop(address, {}).items():
            del host.authorities[authority]
            host.encoded = b""
            if not host.authorities:
                del self._hosts[host.expected]
        if now:
            self._at[address] = {authority: self._add(authority, now[authority]) for authority in now}

    def _add(self, authority: str, expected: Expected) -> _Host:
        host = self._hosts.setdefault(expected, _Host(expected))
        host.authorities[authority] = encoded_authority(authority)
        host.encoded = b""
        return host

    def encoded(self) -> list[bytes]:
        """Return every virtual host for `scrape_proxy.routes_file`."""
        for host in self._hosts.values():
            host.encoded = host.encoded or encoded_host(host.expected, host.authorities.values())
        return [host.encoded for host in self._hosts.values()]
