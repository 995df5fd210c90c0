"""The query for measured reads in a real Prometheus, on the series of a real agent and its Envoy."""

from __future__ import annotations

import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from meshscrape.observe import observe
from meshscrape.plan.reads import QUERY, Reads, parse_reads, unexplained
from support.agent import AgentProcess, agent_process
from support.ca import ca_process
from support.objects import cluster, control_plane, deployment, injected_namespace, pod_of, service
from support.polling import eventually
from support.prometheus import Prometheus, running_prometheus
from support.scraping_objects import plain_prometheus

pytestmark = pytest.mark.timeout(120)

JOB = "kubernetes-pods"
POD = ("default", "web-1")
# Of 15090: Istio's bootstrap gives this name to the connection manager, meshscrape's agent another one.
MANAGER = "stats"
OURS = "metrics_15090"


@contextmanager
def scraped(agent: AgentProcess, directory: Path) -> Iterator[Prometheus]:
    """A Prometheus that reads the agent's merged metrics twice a second, as the add-on's job does."""
    labels = dict(zip(("namespace", "pod"), POD, strict=True))
    job = {
        "job_name": JOB,
        "scrape_interval": "500ms",
        "scrape_timeout": "500ms",
        "metrics_path": "/stats/prometheus",
        "static_configs": [{"targets": [f"{agent.pod}:15020"], "labels": labels}],
        "metric_relabel_configs": [
            {
                "source_labels": ["envoy_http_conn_manager_prefix"],
                "regex": OURS,
                "target_label": "envoy_http_conn_manager_prefix",
                "replacement": MANAGER,
            }
        ],
    }
    with running_prometheus(directory, {"scrape_configs": [job]}) as prometheus:
        yield prometheus


def asked(prometheus: Prometheus) -> Reads:
    """The parsed answer to the query, as `curl` writes it into a file."""
    question = urllib.parse.urlencode({"query": QUERY})
    with urllib.request.urlopen(f"{prometheus.url}/api/v1/query?{question}", timeout=10) as answer:
        return parse_reads(answer.read().decode(), "reads.json")


def told(reads: Reads) -> str:
    """What `unexplained` says about the pod, with the add-on Prometheus as the only known reader."""
    made = deployment("web")
    pod: Any = pod_of(made)
    pod["metadata"]["name"] = POD[1]
    objects = (control_plane(), injected_namespace(), made, pod, service("web"), plain_prometheus())
    found = observe(cluster(*objects))
    (workload,) = (each for each in found.workloads if each.name == "web")
    assert reads.covers(workload)
    return unexplained(reads, workload, found.scrape_jobs)


def test_reads_are_explained_until_somebody_else_reads(tmp_path: Path) -> None:
    """What Prometheus made itself is as much as was measured; another reader of 15020 is found."""
    with ca_process(tmp_path / "ca") as ca, agent_process(tmp_path, ca) as agent:
        agent.await_ready()
        with scraped(agent, tmp_path / "prometheus") as prometheus:
            scrapes = "sum(count_over_time(up[30m])) or vector(0)"
            eventually(lambda: prometheus.value(scrapes) >= 8, within=30, what="eight scrapes")
            quiet = asked(prometheus)
            assert told(quiet) == ""
            stop = threading.Event()
            reader = threading.Thread(target=read, args=(agent, stop))
            reader.start()
            try:
                eventually(lambda: told(asked(prometheus)), within=30, what="a reader that is not known")
            finally:
                stop.set()
                reader.join()
            assert "15020" in told(asked(prometheus))


def read(agent: AgentProcess, stop: threading.Event) -> None:
    """Read the merged metrics again and again, as an unknown collector does."""
    while not stop.wait(0.1):
        agent.get(agent.pod, 15020, "/stats/prometheus")
