"""What the CA counts. No label carries an identity: their number would grow with the mesh."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

RESULTS = ("ok", "unauthenticated", "invalid_argument", "unavailable", "error")


class Metrics:
    """Counts of one CA process."""

    def __init__(self, root_not_after: datetime) -> None:
        """`root_not_after`: when the CA's chain ends."""
        self.roots(root_not_after, 1)
        self._requests: Counter[str] = Counter()
        self.issued = 0

    def roots(self, not_after: datetime, number: int) -> None:
        """When the chain that signs now ends, and how many roots the bundle has."""
        self._root_not_after, self._roots = not_after, number

    def request(self, result: str) -> None:
        """Count one answered request; `result` is one of RESULTS."""
        self._requests[result if result in RESULTS else "error"] += 1

    def render(self) -> str:
        """The counts as Prometheus text exposition 0.0.4."""
        lines = [
            "# HELP meshscrape_ca_certificates_issued_total Workload certificates signed.",
            "# TYPE meshscrape_ca_certificates_issued_total counter",
            f"meshscrape_ca_certificates_issued_total {self.issued}",
            "# HELP meshscrape_ca_requests_total Requests answered, by result.",
            "# TYPE meshscrape_ca_requests_total counter",
            *(
                f'meshscrape_ca_requests_total{{result="{result}"}} {self._requests[result]}'
                for result in RESULTS
            ),
            "# HELP meshscrape_ca_root_not_after_seconds When the CA's chain ends, in Unix time.",
            "# TYPE meshscrape_ca_root_not_after_seconds gauge",
            f"meshscrape_ca_root_not_after_seconds {int(self._root_not_after.timestamp())}",
            "# HELP meshscrape_ca_roots Roots in the trust bundle; two or more while one is rotated.",
            "# TYPE meshscrape_ca_roots gauge",
            f"meshscrape_ca_roots {self._roots}",
        ]
        return "\n".join(lines) + "\n"
