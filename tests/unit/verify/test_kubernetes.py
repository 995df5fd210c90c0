"""Checks of a cluster's mesh by what its API server reaches and what Prometheus says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from meshscrape.observe import observe
from meshscrape.observe.observation import Observation
from meshscrape.verify.findings import CheckResult
from meshscrape.verify.kubernetes import (
    PodAnswer,
    PodVisit,
    asked_targets,
    judge_pods,
    judge_targets,
    unmade,
    visits_of,
)
from support.objects import cluster, control_plane, deployment, injected_namespace, pod_of, proxy_config

SECURE = {"ENVOY_SECURE_MERGED_METRICS_PORT": "15092"}
CLOSED = {"METRICS_LOCALHOST_ACCESS_ONLY": "true"}


def mesh(**settings: str) -> Observation:
    """A workload with a secure port, and its running pod."""
    web = deployment("web", annotations=proxy_config({**SECURE, **settings}))
    return observe(
        cluster(
            control_plane(),
            injected_namespace(),
            web,
            pod_of(web, variables={**SECURE, **settings}, name="web-1"),
        )
    )


def answered(observation: Observation, **by_port: int) -> dict[PodVisit, PodAnswer]:
    """Answers to all visits: the health port answers, and the named ports (`http15020=200`) do."""
    found = {}
    for visit in visits_of(observation):
        status = by_port.get(f"{visit.scheme}{visit.port}", 200 if visit.port == 15021 else 0)
        found[visit] = PodAnswer(status, "" if status else "refused")
    return found


def outcomes(results: Any) -> dict[tuple[str, str], str]:
    """The outcome of each check by check and port."""
    return {(each.check, each.target.rpartition(":")[2]): each.outcome for each in results}


def test_visits_every_port_and_first_one_that_must_answer() -> None:
    visits = list(visits_of(mesh()))
    assert [(visit.scheme, visit.port) for visit in visits] == [
        ("http", 15021), ("http", 15092), ("https", 15092), ("http", 15020), ("http", 15090),
    ]  # fmt: skip
    assert visits[2].request_path.endswith("/pods/https:web-1:15092/proxy/stats/prometheus")


def test_passes_where_a_stranger_gets_nothing() -> None:
    seen = mesh(**CLOSED)
    assert set(outcomes(judge_pods(seen, answered(seen))).values()) == {"passed"}


@pytest.mark.parametrize(
    ("answers", "check", "port"),
    [
        ({"http15092": 200}, "plain-http", "15092"),
        ({"https15092": 200}, "no-certificate", "15092"),
        # Envoy answers a client without a certificate: TLS did not refuse it.
        ({"https15092": 403}, "no-certificate", "15092"),
        ({"http15020": 200}, "plaintext-closed", "15020"),
        ({"http15090": 200}, "plaintext-closed", "15090"),
    ],
)
def test_finds_a_port_that_answers_a_stranger(answers: Any, check: str, port: str) -> None:
    seen = mesh(**CLOSED)
    found = outcomes(judge_pods(seen, answered(seen, **answers)))
    assert [key for key, outcome in found.items() if outcome != "passed"] == [(check, port)]
    assert found[check, port] == "failed"


def test_plaintext_of_a_workload_that_is_not_hardened_is_a_note() -> None:
    seen = mesh()
    found = outcomes(judge_pods(seen, answered(seen, http15020=200)))
    assert found["plaintext-open", "15020"] == "noted"


def test_refusals_prove_nothing_where_the_api_server_cannot_reach_the_pod() -> None:
    seen = mesh(**CLOSED)
    found = outcomes(judge_pods(seen, answered(seen, http15021=0)))
    assert set(found.values()) == {"skipped"}


def targets(**fields: str) -> Any:
    """The answer of a Prometheus with one target."""
    target = {"scrapeUrl": "https://10.0.0.1:15092/stats/prometheus", "health": "up", "lastError": ""}
    return {"data": {"activeTargets": [target | fields]}}


def judged(document: Any) -> dict[str, CheckResult]:
    """The results about the targets of the one pod, in the words of one Prometheus."""
    seen = mesh()
    (workload,) = (each for each in seen.workloads if each.running)
    (pod,) = workload.running
    at = replace(workload, running=(replace(pod, ip="10.0.0.1"),))
    asked = {pod.ref: asked_targets(document)}
    return {each.check: each for each in judge_targets(replace(seen, workloads=(at,)), asked, ())}


def test_a_target_is_up_over_https() -> None:
    found = judged(targets())
    assert {check: each.outcome for check, each in found.items()} == {
        "prometheus-target": "passed",
        "prometheus-scheme": "passed",
    }


def test_finds_targets_that_are_down_or_missing() -> None:
    down = judged(targets(health="down", lastError="connection reset"))
    assert (down["prometheus-target"].outcome, down["prometheus-target"].severity) == ("failed", "broken")
    assert "connection reset" in down["prometheus-target"].seen
    assert judged({"data": {"activeTargets": []}})["prometheus-target"].outcome == "failed"


def test_lists_what_was_not_checked() -> None:
    seen = mesh(**CLOSED)
    done = list(judge_pods(seen, answered(seen)))
    (left,) = unmade(done, inside=False)
    assert left.outcome == "noted"
    assert all(check in left.seen for check in ("unlisted-workload", "expired-certificate", "exposition"))
    assert not any(f" {each.check}," in left.seen for each in done)
    assert "--image" in left.remedy
    (left,) = unmade(done, inside=True)
    assert "local mesh" in left.seen and not left.remedy
