"""Measured reads: what decides for readers that the objects do not tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from meshscrape.errors import InputError
from meshscrape.kube.objects import Inventory, Ref
from meshscrape.observe.references import references
from meshscrape.plan.reads import QUERY, Reads, joined, parse_reads
from support.objects import cluster, control_plane, deployment, injected_namespace, pod_of, service
from support.planning import codes, planned, refs, settled
from support.scraping_objects import plain_prometheus

JOB = "kubernetes-pods"


def answer(*samples: tuple[str, float], pod: str = "web-1") -> str:
    """An answer of Prometheus' API: each sample is a port, or the name of a job."""
    result = [
        {
            "metric": {"namespace": "default", "pod": pod, ("port" if name.isdigit() else "job"): name},
            "value": [1764400000.0, str(value)],
        }
        for name, value in samples
    ]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}})


def reads(*samples: tuple[str, float]) -> Reads:
    return parse_reads(answer(*samples), "reads.json")


def mesh(*more: Any) -> Inventory:
    made = deployment("web")
    pod = pod_of(made)
    pod["metadata"]["name"] = "web-1"
    return cluster(
        control_plane(), injected_namespace(), made, pod, service("web"), plain_prometheus(), *more
    )


def datadog() -> Any:
    agent = deployment("datadog", "datadog", kind="DaemonSet")
    agent["spec"]["template"]["spec"]["containers"][0]["image"] = "gcr.io/datadoghq/agent:7"
    return agent


EXPLAINED = (("15020", 0.0667), ("15090", 0.0667), (JOB, 0.0667))


def hardened(plan: Any) -> bool:
    return "hardening" in {phase for phase, _, _ in refs(plan)}


def test_reads_that_the_jobs_explain_close_the_ports() -> None:
    """Also where an agent among the objects could read them: it does not."""
    plan = settled(mesh(datadog()), reads=reads(*EXPLAINED))
    assert hardened(plan)
    assert not hardened(planned(mesh(datadog())))


@pytest.mark.parametrize(
    "samples",
    [
        (("15020", 0.1334), ("15090", 0.1334), (JOB, 0.0667)),
        (("15020", 0.0667), ("15090", 0.1334), (JOB, 0.0667)),
        (("15020", 0.0667), ("15090", 0.0667), ("another-job", 0.0667)),
    ],
)
def test_a_reader_that_nobody_knows_holds_hardening_back(samples: Any) -> None:
    """Twice as many reads of either port, or reads by a job that reads something else."""
    plan = settled(mesh(), reads=reads(*samples))
    assert not hardened(plan)
    assert "reads-unexplained" in codes(plan)
    assert plan.outcome.secured == ()


def test_one_port_alone_does_not_clear_an_unknown_reader() -> None:
    """Where Envoy's statistics of 15090 are not kept, the agent may read there."""
    plan = planned(mesh(datadog()), reads=reads(("15020", 0.0667), (JOB, 0.0667)))
    assert "reader-unknown" in codes(plan)


def test_each_prometheus_explains_its_own_reads() -> None:
    """Two replicas: both see all reads, and each made half of them."""
    one = reads(("15020", 0.1334), ("15090", 0.1334), (JOB, 0.0667))
    assert hardened(planned(mesh(), reads=joined([one, one])))
    assert not hardened(planned(mesh(), reads=joined([one])))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"status": "error"}',
        '{"status": "success", "data": {"resultType": "vector", "result": []}}',
        '{"status": "success", "data": {"resultType": "matrix", "result": []}}',
        answer(("15020", float("nan"))),
        answer(("15020", -1.0)),
        answer(("15020", 1.0)).replace('"value"', '"values"'),
    ],
)
def test_anything_else_is_an_error(text: str) -> None:
    """An empty answer must not look like a mesh that nobody reads."""
    with pytest.raises(InputError):
        parse_reads(text, "reads.json")


def test_the_query_is_in_the_documentation() -> None:
    """Users copy it from there."""
    page = Path(__file__).parents[3] / "docs" / "kubernetes.md"
    assert QUERY in page.read_text()


def test_names_what_still_mounts_an_override() -> None:
    """A rollback brings an old ReplicaSet back: it needs the ConfigMap. A Job that has ended does not."""
    template = {"metadata": {"annotations": {"sidecar.istio.io/bootstrapOverride": "meshscrape-bootstrap"}}}
    volume = {
        "spec": {"volumes": [{"name": "v", "configMap": {"name": "meshscrape-bootstrap"}}], "containers": []}
    }

    def made(api: str, kind: str, name: str, **data: Any) -> Any:
        return {
            "apiVersion": api,
            "kind": kind,
            "metadata": {"name": name, "namespace": data.pop("space", "default")},
            **data,
        }

    ended = {"conditions": [{"type": "Complete", "status": "True"}]}
    found = references(
        cluster(
            made("apps/v1", "ReplicaSet", "old", spec={"template": template}),
            made("apps/v1", "ReplicaSet", "other", spec={"template": template}, space="elsewhere"),
            made("apps/v1", "ControllerRevision", "set-1", data={"spec": {"template": volume}}),
            made("batch/v1", "Job", "runs", spec={"template": template}),
            made("batch/v1", "Job", "ended", spec={"template": template}, status=ended),
        ),
        Ref("", "ConfigMap", "default", "meshscrape-bootstrap"),
    )
    assert [ref.name for ref in found] == ["set-1", "old", "runs"]


def test_a_plan_names_what_keeps_an_override() -> None:
    """After the way back to native ports, an old ReplicaSet still needs the ConfigMap."""
    before = mesh()
    after = planned(before, mode="bootstrap").apply(before)
    template = next(each for each in after if each.ref.name == "web" and each.ref.kind == "Deployment")
    old = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": "web-old",
            "namespace": "default",
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "1", "controller": True}
            ],
        },
        "spec": {
            "replicas": 0,
            "selector": template.data["spec"]["selector"],
            "template": template.data["spec"]["template"],
        },
    }
    plan = planned(cluster([each.data for each in after], old), mode="native")
    assert "override-in-use" in codes(plan)
