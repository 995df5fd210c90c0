"""Limits of one scrape, so that one workload cannot exhaust Prometheus.

A scrape beyond a limit fails as a whole, so the limits are high: large gateways expose some 50,000 series,
15 MB. Only new Prometheuses get them; a job that takes over a plaintext one inherits what that one has.
"""

SAMPLE_LIMIT = 500_000
BODY_SIZE_LIMIT = "256MB"
