"""The Job of a verifier, and what the API server says of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from meshscrape.cluster.rights import RULES
from meshscrape.cluster.verifier_job import (
    JobState,
    VerifierJob,
    job_object,
    job_state,
    needed_rights,
    owned_objects,
)
from meshscrape.verify.inside import Verifier

JOB = VerifierJob(
    "verify-1", Verifier("outside", "verify-1", ("plain-http", "no-certificate")), "meshscrape:1",
    {"kind": "MeshStatus"}, 120.0, ports=(15000, 8080), own_account=True,
)  # fmt: skip


def pod(state: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    """A pod whose container is in a state."""
    statuses = [{"name": "verify", "state": state}] if state else []
    return {
        "metadata": {"name": "verify-1-abc"},
        "status": {"phase": "Pending", "containerStatuses": statuses} | status,
    }


def test_job_meets_the_restricted_pod_security_standard() -> None:
    """No token of the API, no root, no write to its file system, no capability."""
    spec = job_object(JOB)["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    context = container["securityContext"]
    assert spec["automountServiceAccountToken"] is False
    assert context["runAsNonRoot"] and context["readOnlyRootFilesystem"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["allowPrivilegeEscalation"] is False
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {kind for volume in spec["volumes"] for kind in volume} == {"name", "configMap", "projected"}


def test_pod_with_the_labels_of_the_scraper_is_never_ready() -> None:
    """Network policies admit it, and no Service leads to it; a sidecar is never injected."""
    labels = (("app", "prometheus"), ("sidecar.istio.io/inject", "true"))
    template = job_object(replace(JOB, labels=labels))["spec"]["template"]
    assert template["metadata"]["labels"]["app"] == "prometheus"
    assert template["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"
    (container,) = template["spec"]["containers"]
    assert container["readinessProbe"]["exec"]["command"] == ["false"]


def test_job_ends_and_goes_by_itself_with_all_that_belongs_to_it() -> None:
    spec = job_object(JOB)["spec"]
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"]) == (0, 150)
    assert spec["ttlSecondsAfterFinished"] > 0
    made = owned_objects(JOB, "1-2")
    assert [data["kind"] for _, data in made] == ["ServiceAccount", "ConfigMap"]
    for _, data in made:
        (owner,) = data["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("Job", "verify-1", "1-2")
    assert json.loads(made[1][1]["data"]["mesh.json"]) == JOB.mesh


def test_every_needed_right_is_in_what_rbac_prints() -> None:
    granted = {
        (group, resource, verb)
        for rule in RULES["verify-image"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    wanted = {
        (right.group, right.resource + (f"/{right.subresource}" if right.subresource else ""), right.verb)
        for right in needed_rights((JOB,))
    }
    assert wanted == granted


@pytest.mark.parametrize(
    ("pods", "said"),
    [
        ([pod({"terminated": {"exitCode": 1}})], JobState("verify-1-abc", 1)),
        (
            [pod({"waiting": {"reason": "ErrImagePull", "message": "no such image"}})],
            JobState(
                "verify-1-abc", stuck="its image cannot be pulled (ErrImagePull): no such image"
            ),
        ),
        (
            [
                pod(
                    conditions=[
                        {
                            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                            "message": "0/3 nodes are available",
                        }
                    ]
                )
            ],
            JobState(
                "verify-1-abc",
                waiting="its pod is not scheduled (Unschedulable): 0/3 nodes are available",
            ),
        ),
        ([pod({"running": {}}, phase="Running")], JobState("verify-1-abc", waiting="its pod is Running")),
    ],
)  # fmt: skip
def test_state_of_a_pod(pods: list[dict[str, Any]], said: JobState) -> None:
    assert job_state({}, pods, ()) == said


def test_a_container_that_a_webhook_added_is_not_the_verifier() -> None:
    """Its end says nothing about the checks; why the verifier's own does not start is said."""
    added = {"name": "vault-agent", "state": {"terminated": {"exitCode": 0}}}
    waits = {"reason": "CreateContainerConfigError", "message": 'configmap "x" not found'}
    own = {"name": "verify", "state": {"waiting": waits}}
    state = job_state({}, [pod(containerStatuses=[added, own])], ())
    assert state.code is None
    assert (
        state.waiting == 'its container does not start (CreateContainerConfigError): configmap "x" not found'
    )


def test_refused_pod_is_told_but_not_a_missing_account_that_is_being_made() -> None:
    def event(message: str) -> dict[str, str]:
        return {"reason": "FailedCreate", "message": message}

    account = event('pods "verify-1-" is forbidden: error looking up service account outside/verify-1')
    policy = event('Error creating: pods "verify-1-x" is forbidden: violates PodSecurity "restricted:latest"')
    assert job_state({}, (), (account,)) == JobState(waiting="its pod is not created yet")
    stuck = job_state({}, (), (account, policy)).stuck
    assert (
        stuck
        == 'its pod is refused: pods "verify-1-x" is forbidden: violates PodSecurity "restricted:latest"'
    )


def test_job_that_failed_without_an_exit_code_says_why() -> None:
    failed = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "too long"}
    assert job_state({"status": {"conditions": [failed]}}, (), ()).stuck == "DeadlineExceeded: too long"
