"""Two agents of one mesh: a gateway that reaches a workload over mutual TLS; a dual-stack workload."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshscrape.system.files import private_dir
from support.addresses import free_port, loopback
from support.agent import AgentProcess, agent_process
from support.ca import CaProcess, ca_process
from support.polling import eventually
from support.sidecar import echo_server

pytestmark = pytest.mark.timeout(60)


def routes(address: str, port: int, spiffe_id: str) -> str:
    upstream = {"name": "web", "address": address, "port": port, "spiffeId": spiffe_id}
    return json.dumps([{"prefix": "/", "upstream": upstream}])


@contextlib.contextmanager
def gateway_before(
    web: AgentProcess, ca: CaProcess, directory: Path, expected: str
) -> Iterator[AgentProcess]:
    """A ready gateway on port 8080 that sends everything to `web` and expects `expected` there."""
    private_dir(directory)
    file = directory / "routes.json"
    file.write_text(routes(web.pod, 9080, expected))
    (directory / "token").write_text(ca.token("demo", "gateway"))
    changes = {
        "MESHSCRAPE_ROUTES": str(file),
        "MESHSCRAPE_INBOUND": '[{"port": 8080, "mode": "DISABLE"}]',
        "SERVICE_ACCOUNT": "gateway",
        "POD_NAME": "gateway-0",
    }
    with agent_process(directory, ca, "router", **changes) as gateway:
        gateway.await_ready()
        yield gateway


@contextlib.contextmanager
def workload(directory: Path, ca: CaProcess) -> Iterator[AgentProcess]:
    """A ready sidecar with an application behind its STRICT port 9080."""
    private_dir(directory)
    inbound = {"MESHSCRAPE_INBOUND": '[{"port": 9080, "mode": "STRICT"}]'}
    with agent_process(directory, ca, **inbound) as web, echo_server(web.inside, 9080):
        web.await_ready()
        yield web


def test_a_gateway_reaches_the_workload_that_it_expects(tmp_path: Path) -> None:
    """A request to the gateway is answered by the application behind a STRICT port of the sidecar."""
    with (
        ca_process(tmp_path / "ca") as ca,
        workload(tmp_path / "web", ca) as web,
        gateway_before(web, ca, tmp_path / "gateway", "spiffe://cluster.local/ns/demo/sa/web") as gateway,
    ):
        status, body = gateway.get(gateway.pod, 8080, "/hello")
        assert (status, json.loads(body)["path"]) == (200, "/hello")
        assert gateway.scrape(15091, web.output)[0] == 200


def test_gateway_refuses_any_server_but_the_expected_workload(tmp_path: Path) -> None:
    """When another workload of the mesh answers at that address the client gets 503, not its answer."""
    with (
        ca_process(tmp_path / "ca") as ca,
        workload(tmp_path / "web", ca) as web,
        gateway_before(web, ca, tmp_path / "gateway", "spiffe://cluster.local/ns/demo/sa/bank") as gateway,
    ):
        assert gateway.get(gateway.pod, 8080, "/hello")[0] == 503


def test_a_dual_stack_workload_is_scraped_at_both_addresses(tmp_path: Path) -> None:
    """The secure port listens on the IPv4 and on the IPv6 address of the pod."""
    pod, port = loopback(), free_port("::1")
    changes = {
        "INSTANCE_IP": pod,
        "INSTANCE_IPS": f"{pod},::1",
        "METRICS_LOCALHOST_ACCESS_ONLY": "true",
        "ENVOY_SECURE_METRICS_PORT": str(port),
        "ENVOY_STATUS_PORT": str(free_port("::1")),
        "ENVOY_SECURE_MERGED_METRICS_PORT": "0",
    }
    with ca_process(tmp_path / "ca") as ca, agent_process(tmp_path, ca, **changes) as agent:
        agent.await_ready()
        assert agent.scrape(port, agent.output)[0] == 200
        eventually(lambda: agent.scrape(port, agent.output, address="::1")[0] == 200)
