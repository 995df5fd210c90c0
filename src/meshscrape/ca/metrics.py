"""The CA's metrics. No label contains an identity or an address: their number would grow with the mesh."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

from meshscrape.ca.admission import Admission, Cause, ConnectionStage
from meshscrape.exposition.health import Family, render_families

RESULTS = ("ok", "unauthenticated", "invalid_argument", "unavailable", "error")


class Metrics:
    """The metrics of one CA process."""

    def __init__(self, root_not_after: datetime) -> None:
        """Begin at zero. `root_not_after` is when the CA's chain ends."""
        self.roots(root_not_after, 1)
        self._requests: Counter[str] = Counter()
        self._ended: Counter[tuple[ConnectionStage, Cause]] = Counter()
        self._waited_seconds = 0.0
        self._admission = Admission()
        self.issued = 0
        self.accepted = 0
        self.handshakes = 0

    def roots(self, not_after: datetime, number: int) -> None:
        """Record when the signing chain ends, and how many roots the bundle has."""
        self._root_not_after, self._roots = not_after, number

    def request(self, result: str) -> None:
        """Count one answered request; `result` is one of RESULTS."""
        self._requests[result if result in RESULTS else "error"] += 1

    def connections(self, admission: Admission) -> None:
        """Read the numbers of connections from `admission`."""
        self._admission = admission

    def ended(self, stage: ConnectionStage, cause: Cause) -> None:
        """Count a connection that ended in `stage`."""
        self._ended[stage, cause] += 1

    def waited(self, seconds: float) -> None:
        """Add the time that a ClientHello waited for its turn."""
        self._waited_seconds += seconds

    def render(self) -> bytes:
        """Return the metrics as a Prometheus text exposition 0.0.4."""
        return render_families((*self._issuance(), *self._connections()))

    def _issuance(self) -> tuple[Family, ...]:
        requests = [({"result": result}, float(self._requests[result])) for result in RESULTS]
        return (
            _one(
                "meshscrape_ca_certificates_issued_total",
                "counter",
                "Workload certificates signed.",
                self.issued,
            ),
            Family(
                "meshscrape_ca_requests_total", "counter", "Requests answered, by their result.", requests
            ),
            _one(
                "meshscrape_ca_root_not_after_seconds",
                "gauge",
                "When the CA's chain ends, in Unix time.",
                int(self._root_not_after.timestamp()),
            ),
            _one(
                "meshscrape_ca_roots",
                "gauge",
                "Roots in the trust bundle; two or more during a rotation.",
                self._roots,
            ),
        )

    def _connections(self) -> tuple[Family, ...]:
        present, limits = self._admission, self._admission.limits
        return (
            _one(
                "meshscrape_ca_connections_accepted_total",
                "counter",
                "TCP connections accepted.",
                self.accepted,
            ),
            _one("meshscrape_ca_handshakes_total", "counter", "TLS handshakes completed.", self.handshakes),
            _one(
                "meshscrape_ca_handshake_wait_seconds_total",
                "counter",
                "Total seconds that complete ClientHellos waited for their turn.",
                self._waited_seconds,
            ),
            Family(
                "meshscrape_ca_connections",
                "gauge",
                "Open connections, by stage.",
                [({"stage": stage.value}, float(present.count(stage))) for stage in ConnectionStage],
            ),
            Family(
                "meshscrape_ca_connection_places",
                "gauge",
                "Limit on open connections, by stage.",
                [({"stage": stage.value}, float(limits.places(stage))) for stage in ConnectionStage],
            ),
            Family(
                "meshscrape_ca_connections_ended_total",
                "counter",
                "Connections ended, by stage and cause; evicted: ended to make room for another.",
                [
                    ({"stage": stage.value, "cause": cause.value}, float(self._ended[stage, cause]))
                    for stage in ConnectionStage
                    for cause in Cause
                ],
            ),
        )


def _one(name: str, kind: str, text: str, value: float) -> Family:
    return Family(name, kind, text, [({}, value)])
