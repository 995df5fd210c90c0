"""Port numbers that the data plane owns, and the parsing of port numbers.

The numbers and their purposes are Istio's ("Ports used by Istio" and the list of ports that pilot-agent
refuses as scrape targets); 15091 and 15092 are the mTLS metrics ports of Istio 1.31.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from meshscrape.errors import InputError, Where

STATS = 15090
MERGED = 15020
HEALTH = 15021
SECURE_STATS = 15091
SECURE_MERGED = 15092

PURPOSES: Mapping[int, str] = MappingProxyType(
    {
        15000: "Envoy's admin API",
        15001: "outbound traffic capture",
        15004: "the agent's debug interface",
        15006: "inbound traffic capture",
        15008: "the HBONE tunnel",
        MERGED: "merged metrics",
        HEALTH: "health",
        15053: "the DNS proxy",
        STATS: "Envoy's statistics",
        SECURE_STATS: "Envoy's statistics over mutual TLS",
        SECURE_MERGED: "merged metrics over mutual TLS",
    }
)
RESERVED = frozenset(PURPOSES)

HIGHEST = 65535
_NUMBER = re.compile(r"0|[1-9][0-9]{0,4}", re.ASCII)


def parse_port(text: str, where: Where, allow_zero: bool = False) -> int:
    """Return the port number that `text` spells in plain decimal digits.

    Zero (a port that is off) is accepted only with `allow_zero`. Raises InputError at `where` for anything
    but a number from 1 to 65535. Signs, spaces and leading zeros are refused too, because Go, YAML and Envoy
    read them differently.
    """
    lowest = 0 if allow_zero else 1
    if _NUMBER.fullmatch(text) is None or not lowest <= int(text) <= HIGHEST:
        off = ", or 0 for off" if allow_zero else ""
        raise InputError(
            f"{shorten(text)} is not a port",
            where=where,
            remedy=f"write a number from 1 to {HIGHEST}{off}",
            code="not-a-port",
        )
    return int(text)


def read_port(text: str | None) -> int | None:
    """Return the port number that `text` spells as the agent reads it; None when it is off or unreadable."""
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 5:
        return None
    return int(text) if 0 < int(text) <= HIGHEST else None


def refuse_reserved(port: int, where: Where) -> None:
    """Raise InputError at `where` when `port` belongs to the data plane (see RESERVED)."""
    if port in RESERVED:
        raise InputError(
            f"port {port} is reserved for {PURPOSES[port]}",
            where=where,
            remedy="use another port",
            code="reserved-port",
        )


def shorten(text: object, limit: int = 60) -> str:
    """Return untrusted `text` for an error message: quoted, on one line, of bounded length."""
    spelled = repr(text)
    return spelled if len(spelled) <= limit else spelled[: limit - 1] + "…"
