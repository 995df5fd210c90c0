"""Loopback addresses: each mesh claims a /16 of 127.0.0.0/8, each workload a pair of addresses in it.

The claim is an abstract Unix socket held by `up`. It belongs to the same network namespace as the addresses,
and the kernel removes it whenever the process ends, so a claim is never stale.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass, field
from types import TracebackType

from meshscrape.errors import InputError, UnavailableError

FIRST_OCTET, LAST_OCTET = 20, 250
MOST_WORKLOADS = 250
CA_PORT = 15012
CA_METRICS_PORT = 15014


@dataclass(frozen=True, slots=True)
class AddressPair:
    """A workload's pod address (what the network sees) and its inside address (its own "localhost")."""

    pod: str
    inside: str


@dataclass(slots=True)
class Subnet:
    """A claimed 127.S.0.0/16; a context manager that releases the claim."""

    octet: int
    _claim: socket.socket
    _taken: dict[str, int] = field(default_factory=dict)

    @property
    def ca_address(self) -> str:
        """Return where the mesh's CA listens, `host:port`."""
        return f"127.{self.octet}.0.1:{CA_PORT}"

    @property
    def ca_metrics_address(self) -> str:
        """Return where the mesh's CA serves its metrics, `host:port`."""
        return f"127.{self.octet}.0.1:{CA_METRICS_PORT}"

    def allocate(self, workload: str) -> AddressPair:
        """Return the workload's pair; a new workload gets the lowest free one.

        Raises InputError if none is free.
        """
        number = self._taken.get(workload)
        if number is None:
            in_use = set(self._taken.values())
            free = (n for n in range(1, MOST_WORKLOADS + 1) if n not in in_use)
            number = next(free, None)
            if number is None:
                raise InputError(
                    f"no address is left for workload {workload}",
                    remedy=f"a mesh on one machine has at most {MOST_WORKLOADS} workloads",
                )
            self._taken[workload] = number
        return AddressPair(pod=f"127.{self.octet}.1.{number}", inside=f"127.{self.octet}.2.{number}")

    def release(self, workload: str) -> None:
        """Release the workload's pair."""
        self._taken.pop(workload, None)

    def __enter__(self) -> Subnet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._claim.close()


def claim_subnet() -> Subnet:
    """Claim the lowest /16 that no running mesh holds. Raise UnavailableError if none is free."""
    for octet in range(FIRST_OCTET, LAST_OCTET + 1):
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            claim.bind(f"\0meshscrape/127.{octet}.0.0/16")
        except OSError as error:
            claim.close()
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return Subnet(octet, claim)
    raise UnavailableError(
        f"other meshes use all networks from 127.{FIRST_OCTET}.0.0/16 to 127.{LAST_OCTET}.0.0/16",
        remedy="stop a mesh that you no longer need",
    )
