"""HOST:PORT, spelled and parsed in one place: an IPv6 address stands in brackets (RFC 3986)."""

from __future__ import annotations

from meshscrape.errors import InputError
from meshscrape.istio.ports import parse_port, shorten


def host_port(host: str, port: int | str) -> str:
    """Return `host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_host_port(text: str) -> tuple[str, str] | None:
    """Return host (without brackets) and port of HOST:PORT, both as they are written; either may be empty.

    None when there is no colon, or when an IPv6 address has no brackets: then it is unclear where it ends.
    """
    host, colon, port = text.rpartition(":")
    if not colon:
        return None
    if host.startswith("[") and host.endswith("]") and ":" in host:
        return host[1:-1], port
    return None if ":" in host or "[" in host or "]" in host else (host, port)


def parse_host_port(
    text: str, where: str = "", *, allow_zero: bool = False, example: str = "127.0.0.1:15094"
) -> tuple[str, int]:
    """Return host (without brackets) and port of HOST:PORT. The host is not checked.

    Raises InputError at `where` for other text; the remedy shows `example`.
    """
    parts = split_host_port(text)
    if parts is None or not parts[0]:
        raise InputError(
            f"{shorten(text)} is not HOST:PORT", where=where, remedy=f"write {example}", code="not-host-port"
        )
    return parts[0], parse_port(parts[1], where or shorten(text), allow_zero)
