"""Limits of one scrape, so that one workload cannot overload Prometheus.

A scrape above a limit fails as a whole, so the limits are high: large gateways expose about 50,000 series and
15 MB. Only a new Prometheus gets them; a job derived from a plaintext job inherits that job's limits.
"""

SAMPLE_LIMIT = 500_000
BODY_SIZE_LIMIT = "256MB"
