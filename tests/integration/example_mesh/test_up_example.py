"""The example mesh from outside: its status, its targets, its listeners, requests as its workloads."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from pathlib import Path

import pytest

from meshscrape.local.request import Endpoint, RefusedError, WorkloadHttpRequest, answered, endpoint_of
from support.ca import TestCa
from support.documents import faults
from support.mesh import PROMETHEUS_ID, Up, meshscrape
from support.polling import eventually


def test_status_document_has_the_documented_shape(example_mesh: Up) -> None:
    """Other programs rely on these keys of `meshscrape.io/v1`."""
    document = json.loads(example_mesh.run("status", "-o", "json").stdout)
    assert (document["apiVersion"], document["kind"]) == ("meshscrape.io/v1", "MeshStatus")
    assert faults(document, "MeshStatus") == []
    assert document["phase"] == "Ready"
    assert document["stateDirectory"] == str(example_mesh.state)
    assert document["prometheus"]["workload"] == "istio-system/prometheus"
    httpbin = next(w for w in document["workloads"] if w["name"] == "httpbin")
    assert httpbin["spiffeId"] == "spiffe://cluster.local/ns/default/sa/httpbin"
    assert httpbin["ports"]["secure"] == {"envoy": 15091, "merged": 15092}
    assert httpbin["ports"]["plaintext"] == {"envoy": 15090, "merged": 15020, "health": 15021}
    assert httpbin["ports"]["application"] == [{"name": "http", "port": 8000, "mtls": "STRICT"}]
    assert (httpbin["hardened"], httpbin["ready"], httpbin["kind"]) == (True, True, "sidecar")
    assert httpbin["scrapers"] == [f"spiffe:{PROMETHEUS_ID}"]
    assert httpbin["address"] != httpbin["insideAddress"]
    assert (Path(httpbin["credentials"]) / "cert-chain.pem").is_file()
    assert Path(httpbin["adminSocket"]).is_socket()


def test_status_document_names_the_real_processes(example_mesh: Up) -> None:
    """The pids are those of the agent, of its Envoy and of the application."""
    pids = example_mesh.workload("default/productpage")["pids"]
    for pid, word in ((pids["agent"], "agent"), (pids["envoy"], "envoy"), (pids["application"][0], "guard")):
        assert word in Path(f"/proc/{pid}/cmdline").read_text()
    assert f"PPid:\t{pids['agent']}\n" in Path(f"/proc/{pids['envoy']}/status").read_text()


def test_status_of_a_running_mesh_is_a_table(example_mesh: Up) -> None:
    """Without -o json a person sees workloads, identities and where Prometheus is."""
    done = example_mesh.run("status")
    assert done.returncode == 0
    assert "default/productpage" in done.stdout
    assert "spiffe://cluster.local/ns/default/sa/productpage" in done.stdout
    assert example_mesh.document()["prometheus"]["url"] in done.stdout


def test_documents_of_a_running_mesh_follow_their_schemas(example_mesh: Up) -> None:
    """The explanation of a workload, the report of verify, the state of the root's rotation."""
    example_mesh.wait_until_up()
    for kind, words in {
        "Explanation": ("explain", "httpbin"),
        "VerifyReport": ("verify", "--only", "scraper-admitted"),
        "Rotation": ("ca", "rotate", "--show"),
    }.items():
        done = meshscrape(*words, "--state", str(example_mesh.state), "-o", "json")
        assert done.returncode == 0, done.stderr
        assert faults(json.loads(done.stdout), kind) == []


def test_state_is_private(example_mesh: Up) -> None:
    """Nobody else may enter the state directory or read a key or a token."""
    assert stat.S_IMODE(example_mesh.state.stat().st_mode) == 0o700
    entry = example_mesh.workload("default/httpbin")
    for path in (Path(entry["credentials"]) / "key.pem", Path(entry["token"])):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_secrets_are_in_no_command_line_and_no_application_environment(example_mesh: Up) -> None:
    """A token or key never shows up in /proc for others, and an application gets no agent's settings."""
    token = Path(example_mesh.workload("default/httpbin")["token"]).read_text()
    for pid in example_mesh.processes():
        assert token not in Path(f"/proc/{pid}/cmdline").read_text()
    application = example_mesh.workload("default/httpbin")["pids"]["application"][0]
    environment = Path(f"/proc/{application}/environ").read_text()
    assert "MESHSCRAPE_" not in environment and token not in environment


def test_an_application_works_in_a_directory_without_secrets(example_mesh: Up) -> None:
    """An application that serves the files around it has no key or token to give away."""
    application = example_mesh.workload("default/httpbin")["pids"]["application"][0]
    assert list(Path(f"/proc/{application}/cwd").resolve().iterdir()) == []


def test_a_second_up_in_the_same_directory_is_refused(example_mesh: Up) -> None:
    """One state directory is one mesh: the second `up` names the first one's pid and touches nothing."""
    done = meshscrape("up", "--state", str(example_mesh.state))
    assert done.returncode == 2
    assert str(example_mesh.process.pid) in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert example_mesh.run("status").returncode == 0


def test_listeners_shows_which_ports_speak_tls(example_mesh: Up) -> None:
    """The running Envoy's listeners: secure ports with `Trans: tls`, on the pod address alone."""
    entry = example_mesh.workload("default/productpage")
    for name in ("productpage", "default/productpage", "productpage.default"):
        done = example_mesh.run("listeners", name, "-o", "json")
        assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert faults(rows, "Listeners") == []
    secure = [row for row in rows if row["port"] in (15091, 15092, 9080)]
    assert {(row["address"], row["match"]) for row in secure} == {(entry["address"], "Trans: tls")}
    assert "Trans: tls" in example_mesh.run("listeners", "productpage").stdout


def test_listeners_of_an_unknown_workload_names_the_known_ones(example_mesh: Up) -> None:
    """A name that is none gets one line with those that are."""
    done = example_mesh.run("listeners", "nobody")
    assert done.returncode == 2
    assert "default/httpbin" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_curl_as_a_workload_reaches_an_application(example_mesh: Up) -> None:
    """With a mesh certificate the STRICT port answers, the body goes to stdout."""
    done = example_mesh.run("curl", "--as", "istio-system/prometheus", "https://productpage:9080/health")
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_curl_as_an_unlisted_workload_gets_403_from_a_secure_port(example_mesh: Up) -> None:
    """A workload of the mesh that is not on the allow list is refused, with exit code 22."""
    done = example_mesh.run("curl", "--as", "default/httpbin", "-i", "https://productpage:15092/metrics")
    assert done.returncode == 22
    assert done.stdout.startswith("HTTP/1.1 403")


def test_curl_without_tls_is_cut_off_by_a_strict_port(example_mesh: Up) -> None:
    """Plain HTTP to a STRICT port gets no answer, which is one clear line."""
    done = example_mesh.run("curl", "--as", "default/httpbin", "http://productpage:9080/health")
    assert done.returncode == 2
    assert "closed the connection" in done.stderr or "broke" in done.stderr
    assert "write https://" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_curl_reports_a_request_that_cannot_be_written(example_mesh: Up) -> None:
    """A path, a header or a method outside ASCII is one clear line and exit code 2."""
    url = "https://productpage:9080/"
    for more in ([f"{url}caf\u00e9"], [url, "-H", "x: \u00e9"], [url, "-X", "G\u00c9T"]):
        done = example_mesh.run("curl", "--as", "default/httpbin", *more)
        assert done.returncode == 2
        assert "cannot be written" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_curl_refuses_an_address_that_no_workload_has(example_mesh: Up) -> None:
    """Where no identity is expected nothing can be checked, so nothing is sent."""
    done = example_mesh.run("curl", "--as", "default/httpbin", "https://127.0.0.1:1/")
    assert done.returncode == 2 and "no workload of the mesh is at 127.0.0.1" in done.stderr


def _send(endpoint: Endpoint, credentials: Path) -> None:
    request = WorkloadHttpRequest("GET", "https://example:1/metrics")

    async def ask() -> None:
        async with answered(endpoint, request, credentials, patience=5.0, tell=lambda line: None):
            pass

    asyncio.run(ask())


def test_curl_sends_nothing_to_a_server_with_another_identity(
    example_mesh: Up,
) -> None:
    """A workload that answers at another's address is refused although its certificate is the mesh's."""
    document = example_mesh.document()
    httpbin = next(w for w in document["workloads"] if w["name"] == "httpbin")
    productpage = next(w for w in document["workloads"] if w["name"] == "productpage")
    httpbin["spiffeId"], productpage["spiffeId"] = productpage["spiffeId"], httpbin["spiffeId"]
    endpoint = endpoint_of("https://productpage:9080/", document)
    with pytest.raises(RefusedError, match=r"sa/productpage answers.*nothing was sent"):
        _send(endpoint, Path(httpbin["credentials"]))


def test_a_refusal_by_tls_names_the_alert(example_mesh: Up, tmp_path: Path) -> None:
    """A certificate of another CA is refused by the server, and the line says with which alert."""
    credentials = TestCa().workload("istio-system", "prometheus").write(tmp_path / "stranger")
    document = example_mesh.document()
    (credentials / "root-cert.pem").write_bytes(Path(document["ca"]["rootCertificate"]).read_bytes())
    endpoint = endpoint_of("https://httpbin:15092/metrics", document)
    with pytest.raises(RefusedError, match="TLS alert 'unknown ca'"):
        _send(endpoint, credentials)


def test_a_server_of_another_ca_is_not_trusted(example_mesh: Up, tmp_path: Path) -> None:
    """With another trust bundle the server's certificate is refused before anything is sent."""
    credentials = TestCa().workload("istio-system", "prometheus").write(tmp_path / "stranger")
    endpoint = endpoint_of("https://httpbin:15092/metrics", example_mesh.document())
    with pytest.raises(RefusedError, match="not trusted"):
        _send(endpoint, credentials)


def test_gateway_routes_by_prefix_to_both_applications(example_mesh: Up) -> None:
    """Plain HTTP from outside reaches httpbin and productpage through the gateway's mutual TLS."""
    gateway = example_mesh.workload("istio-system/istio-ingressgateway")["address"]
    page = example_mesh.run("curl", "--as", "default/httpbin", f"http://{gateway}:8080/products/lamp")
    assert "Desk lamp" in page.stdout
    echo = example_mesh.run("curl", "--as", "default/httpbin", f"http://{gateway}:8080/headers")
    assert '"Host"' in echo.stdout


def test_traffic_increases_the_statistics(example_mesh: Up) -> None:
    """The example's trickle of requests shows up in the application's own counters."""
    expression = 'sum(productpage_requests_total{route="/products/<key>"})'

    def requests() -> float:
        found = example_mesh.query(expression)
        return float(found[0]["value"][1]) if found else 0.0

    first = eventually(requests, within=45, what="requests counted")
    eventually(lambda: requests() > first, within=45, what="more requests")


def test_only_the_owner_can_read_the_ca_key(example_mesh: Up) -> None:
    """Keys at rest are 0600, everywhere below the state directory."""
    keys = [path for path in example_mesh.state.rglob("*key*.pem") if path.is_file()]
    assert keys
    assert {stat.S_IMODE(os.stat(path).st_mode) for path in keys} == {0o600}
