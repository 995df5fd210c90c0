"""What runs beside a mesh: another mesh, and a scrape proxy that takes its targets from it."""

from __future__ import annotations

from pathlib import Path

from meshscrape.prometheus.targets import MERGED_JOB
from support.mesh import SECURE, Up, running_up, workload_manifest, write_mesh
from support.scrape_proxy import running_proxy


def test_two_meshes_run_side_by_side(tmp_path: Path, example_mesh: Up) -> None:
    """Each mesh has its own network: a second one with the same ports starts beside the first."""
    manifest = write_mesh(tmp_path / "mesh.yaml", workload_manifest("sleeper", metadata=SECURE))
    with running_up(tmp_path / "state", str(manifest)) as up:
        own = up.wait_for_phase()["workloads"][0]["address"]
        others = {workload["address"] for workload in example_mesh.document()["workloads"]}
        assert own.rsplit(".", 2)[0] not in {other.rsplit(".", 2)[0] for other in others}


def test_proxy_scrapes_the_targets_of_a_running_mesh(tmp_path: Path, example_mesh: Up) -> None:
    """`--mesh DIR`: another proxy knows the workloads of a running mesh, by job and identity."""
    example_mesh.wait_until_up()
    own = example_mesh.workload("istio-system/prometheus")["outputCertificates"]
    with running_proxy(tmp_path, [own], [], "--mesh", str(example_mesh.state)) as proxy:
        merged = proxy.http_sd(MERGED_JOB)
        assert {each["labels"]["workload"] for each in merged} == {
            "httpbin", "productpage", "istio-ingressgateway",
        }  # fmt: skip
        for each in merged:
            answer = proxy.scrape(each["targets"][0])
            assert answer.status == 200 and "envoy_server_live" in answer.body
