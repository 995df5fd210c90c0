"""Loopback addresses that no other test uses at the same time."""

from __future__ import annotations

import random
import socket

_draw = random.SystemRandom()


def loopback() -> str:
    """A random address of 127.0.0.0/8, outside the ranges that programs choose by habit."""
    return f"127.{_draw.randint(64, 127)}.{_draw.randint(1, 254)}.{_draw.randint(1, 254)}"


def free_port(address: str = "127.0.0.1") -> int:
    """A port that was free on `address` a moment ago; for `::1`, where every test has the same address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port
