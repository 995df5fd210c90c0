"""Bounds on what a client may hold and for how long, in one place: the numbers depend on each other."""

from __future__ import annotations

from dataclasses import replace

from meshscrape.envoy.resources.clusters import Breaker
from meshscrape.envoy.resources.http import HttpLimits

# Seconds. When a connection has lived for CONNECTION_DURATION, Envoy announces its end and accepts requests
# for another DRAIN_TIMEOUT. A request that has begun may take SCRAPE_TIMEOUT more.
CONNECTION_DURATION = 60.0
DRAIN_TIMEOUT = 5.0
SCRAPE_TIMEOUT = 60.0
REVOCATION_BOUND = CONNECTION_DURATION + DRAIN_TIMEOUT + SCRAPE_TIMEOUT
"""Seconds after a certificate's end within which the secure ports serve its last byte.

A change of the allow list acts at once: every request is checked against it.
"""

# Every workload of the mesh can open a connection here, also one that may not scrape, so idle connections
# must end soon. The time is not a multiple of usual scrape intervals: otherwise the scraper's next request
# would often meet the end of its connection.
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

# Applications decide how long an upload, an answer or a web socket may take. Connections without any request
# are bounded here: they cost the application nothing, but they fill the listener.
TRAFFIC = HttpLimits(
    headers_kb=60,
    headers_count=100,
    streams=128,
    headers_timeout=10.0,
    request_timeout=None,
    stream_idle_timeout=300.0,
    idle_timeout=300.0,
    stream_duration=None,
    connection_duration=None,
    drain_timeout=5.0,
)
# Without TLS the client is unknown, so it may hold an idle connection for less time.
PLAIN_TRAFFIC = replace(TRAFFIC, idle_timeout=60.0)

# Open connections per listener. A secure port has few clients. The rest is room for connections that never
# finish a handshake (closed after 5 s, 17 kB each), so that thousands of them do not keep the scraper out.
SECURE_CONNECTIONS = 4096
PLAINTEXT_CONNECTIONS = 512
TRAFFIC_CONNECTIONS = 4096
# On a PERMISSIVE port, plaintext connections may take half of the places. The other half is for mutual TLS.
PLAIN_SHARE = TRAFFIC_CONNECTIONS // 2

# Each port has a cluster and breakers of its own. Every client can use the plaintext ports, so they get a
# smaller part of the shared backends: Envoy's main thread and the agent.
PLAINTEXT_BREAKER = Breaker(connections=4, pending=8, requests=8)
SECURE_BREAKER = Breaker(connections=16, pending=32, requests=32)
# The application itself decides how many connections it accepts.
TRAFFIC_BREAKER = Breaker(connections=TRAFFIC_CONNECTIONS, pending=TRAFFIC_CONNECTIONS, requests=2**14)

LOCAL_CONNECT_TIMEOUT = 1.0
MESH_CONNECT_TIMEOUT = 5.0
# A gateway closes idle connections before the sidecar at the other end does, so that no request meets the
# end of its connection.
MESH_IDLE_TIMEOUT = TRAFFIC.idle_timeout - 30.0

# The scrape proxy closes a connection to a target before the target does (IDLE_TIMEOUT, CONNECTION_DURATION),
# so that no scrape meets the end of its connection. It keeps connections of the scraper for longer than the
# usual scrape intervals.
PROXY_IDLE_TIMEOUT = IDLE_TIMEOUT - 5.0
PROXY_CONNECTION_DURATION = CONNECTION_DURATION - 10.0
# A broken connection is tried twice. Both attempts take less than Prometheus's default timeout, 10 s.
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
