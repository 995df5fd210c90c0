"""How much, and how long, a client may hold a port. One place, because the numbers depend on each other."""

from __future__ import annotations

from meshscrape.envoy.clusters import Breaker
from meshscrape.envoy.http import HttpLimits

# Seconds. A scrape that is under way when its connection's time is up has DRAIN_TIMEOUT, Prometheus's default
# scrape timeout, to finish; then the connection is cut.
CONNECTION_DURATION = 60.0
DRAIN_TIMEOUT = 10.0
REVOCATION_BOUND = CONNECTION_DURATION + DRAIN_TIMEOUT
"""Seconds after a certificate's end within which the secure ports stop serving connections it opened.

The allow list has no such delay: it is asked at every request.
"""

# The longest scrape: as long as a connection lives.
SCRAPE_TIMEOUT = 60.0

METRICS = HttpLimits(
    headers_kb=8,
    headers_count=50,
    streams=16,
    headers_timeout=5.0,
    request_timeout=10.0,
    stream_idle_timeout=SCRAPE_TIMEOUT,
    idle_timeout=CONNECTION_DURATION,
    stream_duration=SCRAPE_TIMEOUT,
    connection_duration=CONNECTION_DURATION,
    drain_timeout=DRAIN_TIMEOUT,
)

# Applications: large uploads, slow answers and web sockets are theirs to bound.
TRAFFIC = HttpLimits(
    headers_kb=60,
    headers_count=100,
    streams=128,
    headers_timeout=10.0,
    request_timeout=None,
    stream_idle_timeout=300.0,
    idle_timeout=3600.0,
    stream_duration=None,
    connection_duration=None,
    drain_timeout=5.0,
)

# Open connections per listener. Metrics ports have few clients; the rest is room for handshakes that lead to
# nothing and are cut after a few seconds.
METRICS_CONNECTIONS = 256
TRAFFIC_CONNECTIONS = 4096

SCRAPE_BREAKER = Breaker(connections=16, pending=32, requests=32)
# An application has its own opinion on how many connections it takes.
TRAFFIC_BREAKER = Breaker(connections=TRAFFIC_CONNECTIONS, pending=TRAFFIC_CONNECTIONS, requests=2**14)

LOCAL_CONNECT_TIMEOUT = 1.0
MESH_CONNECT_TIMEOUT = 5.0
