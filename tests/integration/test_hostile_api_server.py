"""The client of the Kubernetes API against a server that answers garbage: an error, no other exception."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshscrape.cluster import api as module
from meshscrape.cluster.api import REQUEST, Api, ApiError
from meshscrape.cluster.kubeconfig import Access
from meshscrape.cluster.pod_source import PodScope, PodSource
from meshscrape.cluster.targets import proxied_targets
from meshscrape.errors import MeshscrapeError, UnavailableError
from meshscrape.kube.pod_targets import TargetMesh
from meshscrape.prometheus.targets import JOBS
from support.addresses import loopback
from support.serving import serving
from support.targets import raw_target

PODS = "/api/v1/pods"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
# An injected pod; each of its parts may be replaced by anything.
POD: dict[str, Any] = {
    "metadata": {
        "name": "web-1", "namespace": "shop", "uid": "1",
        "annotations": {"prometheus.istio.io/secure-port": "15092"},
        "ownerReferences": [{"kind": "ReplicaSet", "name": "web-1", "controller": True}],
    },
    "spec": {"serviceAccountName": "web", "containers": [{"name": "istio-proxy", "env": [], "ports": []}]},
    "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]},
}  # fmt: skip


def answering(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def api(address: str) -> Api:
    return Api(Access(server=f"http://{address}:15092", place="context dev"))


async def listed(client: Api) -> int:
    return sum([len(page.items) async for page in client.pages(PODS)])


async def watched(client: Api) -> int:
    return len([event async for event in client.watch(PODS, "1")])


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xff\xfe", b"[]", b"null", b"[" * 100_000, b'{"items": {"a": 1}}', b'{"items": [1, "x"]}',
        b'{"metadata": [1]}', b'{"metadata": "x", "items": []}', b'{"metadata": {"continue": "again"}}',
    ],
)  # fmt: skip
def test_a_list_that_is_none_or_never_ends_is_an_error(body: bytes) -> None:
    """The last body promises a next page with the same token, for ever."""
    with raw_target(loopback(), answering(body)) as address, pytest.raises(UnavailableError):
        asyncio.run(listed(api(address)))


def test_a_page_that_is_too_large_is_asked_for_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it fits; an object that is too large alone is an error."""
    monkeypatch.setattr(module, "REQUEST", replace(REQUEST, body_bytes=1000))
    asked: list[int] = []

    class Large(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = dict(parse_qsl(urlsplit(self.path).query))
            asked.append(int(query["limit"]))
            begin = int(query.get("continue", 0))
            items = [{"x": "x" * size} for size in sizes[begin : begin + asked[-1]]]
            following = str(begin + asked[-1]) if begin + asked[-1] < len(sizes) else ""
            body = json.dumps({"metadata": {"continue": following}, "items": items}).encode()
            self.wfile.write(answering(body))

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer((loopback(), 15092), Large)
    with serving(server):
        client = api(str(server.server_address[0]))
        sizes = [100] * 50
        assert asyncio.run(listed(client)) == 50
        assert (asked[0], asked[-1]) == (500, 7)
        sizes = [100, 2000]
        with pytest.raises(UnavailableError):
            asyncio.run(listed(client))


@pytest.mark.parametrize(
    "event",
    [
        b'{"type": "ADDED", "object": [1]}', b'{"type": "ERROR", "object": "x"}', b"[]", b"no JSON",
        b'{"type": "ERROR", "object": {"code": "x", "message": ["y"]}}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_watch_of_garbage_is_an_error(event: bytes) -> None:
    """Each event that is none."""
    with raw_target(loopback(), answering(event + b"\n")) as address, pytest.raises(MeshscrapeError):
        asyncio.run(watched(api(address)))


def test_a_refusal_is_one_short_line_that_controls_no_terminal() -> None:
    """Whatever the server writes into its message."""
    told = {"kind": "Status", "reason": "\x1b[31mForbidden" * 1000, "message": "no\n\x1b[2J\x07" * 1000}
    answer = answering(json.dumps(told).encode(), "403 Forbidden")
    with raw_target(loopback(), answer) as address, pytest.raises(ApiError) as refused:
        asyncio.run(listed(api(address)))
    assert len(str(refused.value)) < 1000
    assert str(refused.value).isprintable()
    assert refused.value.reason.isprintable()


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(each for key, below in inner for each in paths(below, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], by)
    return copy


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(paths(POD)[1:]), VALUES), min_size=1, max_size=2))
def test_odd_pods_cost_their_own_targets_only(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    """A pod of which any part is anything, beside a good one: the good one is a target."""
    odd: Any = POD
    for path, value in changes:
        with contextlib.suppress(KeyError, IndexError, TypeError):
            odd = replaced(odd, path, value)
    good = replaced(replaced(POD, ("metadata", "uid"), "2"), ("status", "podIPs"), [{"ip": "10.0.0.2"}])
    body = json.dumps({"metadata": {"resourceVersion": "1"}, "items": [odd, good]}).encode()

    async def first() -> list[str]:
        async def rule() -> Any:
            return lambda pod: proxied_targets(pod, TargetMesh("cluster.local"))

        async for snapshot in PodSource(api(address), PodScope(), JOBS, rule).snapshots():
            return [target.address for own in snapshot.targets.values() for target in own]
        raise AssertionError("no snapshot")

    with raw_target(loopback(), answering(body)) as address:
        assert "10.0.0.2" in asyncio.run(first())
