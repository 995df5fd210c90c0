"""How much, and how long, a client may hold a port. One place, because the numbers depend on each other."""

from __future__ import annotations

from meshscrape.envoy.resources.clusters import Breaker
from meshscrape.envoy.resources.http import HttpLimits

# Seconds. When a connection's time is up, Envoy announces its end and takes no new request after
# DRAIN_TIMEOUT; a request under way goes on, for at most SCRAPE_TIMEOUT.
CONNECTION_DURATION = 60.0
DRAIN_TIMEOUT = 5.0
SCRAPE_TIMEOUT = 60.0
REVOCATION_BOUND = CONNECTION_DURATION + DRAIN_TIMEOUT + SCRAPE_TIMEOUT
"""Seconds after a certificate's end within which the secure ports serve its last byte.

The allow list has no such delay: it is asked at every request.
"""

# Any workload of the mesh can hold an idle connection that it may not use: not for long. Not a multiple of
# usual scrape intervals, so that the scraper's next request and the end seldom cross.
IDLE_TIMEOUT = 40.0

METRICS = HttpLimits(
    headers_kb=8,
    headers_count=50,
    streams=16,
    headers_timeout=5.0,
    request_timeout=10.0,
    stream_idle_timeout=SCRAPE_TIMEOUT,
    idle_timeout=IDLE_TIMEOUT,
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

# Open connections per listener. A secure port has few clients; the rest is room for thousands of connections
# that never finish a handshake (cut after 5 s, 17 kB each) beside which the scraper still gets in.
SECURE_CONNECTIONS = 4096
PLAINTEXT_CONNECTIONS = 512
TRAFFIC_CONNECTIONS = 4096

# Each port has a cluster, and breakers, of its own. Anybody can use the plaintext ports, so they get less of
# what is behind both: Envoy's main thread, the agent.
PLAINTEXT_BREAKER = Breaker(connections=4, pending=8, requests=8)
SECURE_BREAKER = Breaker(connections=16, pending=32, requests=32)
# An application has its own opinion on how many connections it takes.
TRAFFIC_BREAKER = Breaker(connections=TRAFFIC_CONNECTIONS, pending=TRAFFIC_CONNECTIONS, requests=2**14)

LOCAL_CONNECT_TIMEOUT = 1.0
MESH_CONNECT_TIMEOUT = 5.0

# The scrape proxy. Towards its targets it gives connections up before they do (IDLE_TIMEOUT,
# CONNECTION_DURATION), so that no scrape meets the end of its connection; towards the scraper, later than
# Prometheus may need them at usual intervals.
PROXY_IDLE_TIMEOUT = IDLE_TIMEOUT - 5.0
PROXY_CONNECTION_DURATION = CONNECTION_DURATION - 10.0
# Twice this, as a broken connection is tried again, is less than Prometheus's default patience of 10 s.
PROXY_CONNECT_TIMEOUT = 3.0
PROXY_BREAKER = Breaker(connections=2**16, pending=2**16, requests=2**16, retries=64)
PROXY_CONNECTIONS = 4096
PROXY = HttpLimits(
    headers_kb=8,
    headers_count=50,
    streams=1,
    headers_timeout=5.0,
    request_timeout=10.0,
    stream_idle_timeout=SCRAPE_TIMEOUT + 5.0,
    idle_timeout=120.0,
    stream_duration=None,
    connection_duration=None,
    drain_timeout=1.0,
)
