"""The Job of a verifier, what belongs to it, and what its pod's status tells (pure).

The ConfigMap and the ServiceAccount are owned by the Job. The Job ends by itself, and the cluster removes it
some time after its end. So nothing remains, even if the command that made it is killed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from meshscrape.cluster.needs import NeededRight
from meshscrape.istio import names
from meshscrape.kube.objects import Object, as_list, dig
from meshscrape.prometheus.scrape_proxy_pod import restricted
from meshscrape.verify.inside import Verifier, VerifierFiles

CONTAINER = "verify"
BATCH = "batch"
_DIRECTORY = "/etc/meshscrape"
_MESH = f"{_DIRECTORY}/mesh.json"
_TOKENS = "/var/run/secrets/meshscrape/token"
_ROOTS = "/var/run/secrets/meshscrape/roots"
# Istio never intercepts the traffic of this user.
_USER = 1337
# A Job ends by itself this many seconds after the command gives up waiting, if nobody removes it.
_LONGER = 30
# How many seconds an ended Job stays.
_KEPT = 600
# The API server takes objects of 1 MiB and a little more in all (etcd's limit).
MOST_BYTES = 900_000
# How the Job controller begins its event.
_CREATING = "Error creating: "
# What the API server says about a pod whose ServiceAccount is not there (yet).
_NO_ACCOUNT = "error looking up service account"
# Reasons of a waiting container that do not go away by themselves.
_STUCK = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")


@dataclass(frozen=True, slots=True)
class VerifierJob:
    """A verifier's Job: its name, image, the document of the mesh, and how many seconds it may take.

    `own_account`: the ServiceAccount is made for the Job. `ports` are tried for metrics. `labels` are more
    labels of its pod, for network policies. The pod is never ready, so that no Service leads to it.
    """

    name: str
    verifier: Verifier
    image: str
    mesh: Object
    seconds: float
    ports: tuple[int, ...] = ()
    own_account: bool = False
    pull_secret: str = ""
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def path(self) -> str:
        """Return the Job's path in the API."""
        return f"{jobs_path(self.verifier.namespace)}/{self.name}"

    @property
    def selector(self) -> str:
        """Return the selector of its pods."""
        return f"job-name={self.name}"


@dataclass(frozen=True, slots=True)
class JobState:
    """What is known of a Job: the exit code of its container, or why it cannot start, or what it waits for.

    `pod` is empty while there is none.
    """

    pod: str = ""
    code: int | None = None
    stuck: str = ""
    waiting: str = ""


def jobs_path(namespace: str) -> str:
    """Return the path of a namespace's Jobs."""
    return f"/apis/{BATCH}/v1/namespaces/{namespace}/jobs"


def core_path(namespace: str, plural: str) -> str:
    """Return the path of a namespace's objects of the core group."""
    return f"/api/v1/namespaces/{namespace}/{plural}"


def files(ca_address: str) -> VerifierFiles:
    """Return where the Job's pod has the CA's root and its token."""
    return VerifierFiles(ca_address, f"{_ROOTS}/{names.ROOTS_FILE}", f"{_TOKENS}/istio-token")


def needed_rights(jobs: Sequence[VerifierJob]) -> Iterator[NeededRight]:
    """Yield the rights to run Jobs, to read what they say, and to remove them."""
    for job in jobs:
        space = job.verifier.namespace
        for verb in ("create", "get", "delete"):
            yield NeededRight(verb, BATCH, "jobs", space)
        kinds = ("configmaps", "serviceaccounts") if job.own_account else ("configmaps",)
        for plural in kinds:
            for verb in ("create", "delete"):
                yield NeededRight(verb, "", plural, space)
        yield NeededRight("list", "", "pods", space)
        yield NeededRight("list", "", "events", space)
        yield NeededRight("get", "", "pods", space, "log")


def job_object(job: VerifierJob) -> dict[str, Any]:
    """Return the Job."""
    verifier = job.verifier
    arguments = [
        "verify", "--mesh", _MESH, "--only", ",".join(verifier.checks), "--quiet", "--output", "json",
    ]  # fmt: skip
    if job.ports:
        arguments += ["--ports", ",".join(map(str, job.ports))]
    spec: dict[str, Any] = {
        "serviceAccountName": verifier.account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "containers": [
            {
                "name": CONTAINER,
                "image": job.image,
                "args": arguments,
                "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
                "securityContext": restricted(_USER),
                "readinessProbe": {"exec": {"command": ["false"]}, "periodSeconds": 60},
                "volumeMounts": [
                    {"name": "mesh", "mountPath": _DIRECTORY, "readOnly": True},
                    {"name": "token", "mountPath": _TOKENS, "readOnly": True},
                    {"name": "roots", "mountPath": _ROOTS, "readOnly": True},
                ],
            }
        ],
        "volumes": _volumes(job.name),
    }
    if job.pull_secret:
        spec["imagePullSecrets"] = [{"name": job.pull_secret}]
    return {
        "apiVersion": f"{BATCH}/v1",
        "kind": "Job",
        "metadata": _metadata(job),
        "spec": {
            # A finding ends the pod with 1. Running it again would find the same.
            "backoffLimit": 0,
            "activeDeadlineSeconds": int(job.seconds) + _LONGER,
            "ttlSecondsAfterFinished": _KEPT,
            "template": {
                "metadata": {"labels": _labels() | dict(job.labels) | {names.INJECT: "false"}},
                "spec": spec,
            },
        },
    }


def owned_objects(job: VerifierJob, uid: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the objects that belong to a Job, each with the path of its kind."""
    space = job.verifier.namespace
    owner = {"apiVersion": f"{BATCH}/v1", "kind": "Job", "name": job.name, "uid": uid}
    metadata = {**_metadata(job), "ownerReferences": [owner]}
    text = json.dumps(job.mesh, separators=(",", ":"))
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"mesh.json": text}}
    made: list[tuple[str, dict[str, Any]]] = [(core_path(space, "configmaps"), config)]
    if job.own_account:
        account = {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": metadata | {"name": job.verifier.account},
            "automountServiceAccountToken": False,
        }
        made.insert(0, (core_path(space, "serviceaccounts"), account))
    return made


def size_of(job: VerifierJob) -> int:
    """Return the bytes of the document of the mesh."""
    return len(json.dumps(job.mesh, separators=(",", ":")))


def job_state(job: Object, pods: Sequence[Object], events: Sequence[Object]) -> JobState:
    """Return the state of a Job from itself, its pods and the events about it."""
    if not pods:
        told = [event for event in events if dig(event, "reason") == "FailedCreate"]
        # The ServiceAccount is made after the Job, which tries again then.
        final = [text for event in told if _NO_ACCOUNT not in (text := str(dig(event, "message")))]
        stuck = f"its pod is refused: {final[-1].removeprefix(_CREATING)}" if final else _failed(job)
        return JobState(stuck=stuck, waiting="its pod is not created yet")
    pod = max(pods, key=lambda candidate: str(dig(candidate, "metadata", "creationTimestamp", default="")))
    name = str(dig(pod, "metadata", "name"))
    waiting = _waiting(pod)
    for status in as_list(dig(pod, "status", "containerStatuses")):
        # A webhook may have added other containers.
        if dig(status, "name") != CONTAINER:
            continue
        code = dig(status, "state", "terminated", "exitCode")
        if isinstance(code, int):
            return JobState(name, code)
        reason = str(dig(status, "state", "waiting", "reason", default=""))
        message = str(dig(status, "state", "waiting", "message", default="") or "")
        if reason in _STUCK:
            return JobState(
                name, stuck=f"its image cannot be pulled ({reason}){': ' * bool(message)}{message}"
            )
        if message:
            waiting = f"its container does not start ({reason}): {message}"
    return JobState(name, stuck=_failed(job), waiting=waiting)


def _failed(job: Object) -> str:
    for condition in as_list(dig(job, "status", "conditions")):
        if dig(condition, "type") == "Failed" and dig(condition, "status") == "True":
            return f"{dig(condition, 'reason', default='Failed')}: {dig(condition, 'message', default='')}"
    return ""


def _waiting(pod: Object) -> str:
    for condition in as_list(dig(pod, "status", "conditions")):
        if dig(condition, "type") == "PodScheduled" and dig(condition, "status") == "False":
            message = dig(condition, "message", default="")
            return f"its pod is not scheduled ({dig(condition, 'reason', default='')}): {message}"
    told = dig(pod, "status", "message", default="") or ""
    return f"its pod is {dig(pod, 'status', 'phase', default='Pending')}{': ' * bool(told)}{told}"


def _volumes(config_map: str) -> list[dict[str, Any]]:
    token = {"audience": names.CA_TOKEN_AUDIENCE, "expirationSeconds": 3600, "path": "istio-token"}
    return [
        {"name": "mesh", "configMap": {"name": config_map}},
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": "roots", "configMap": {"name": names.CA_ROOT_CONFIG_MAP}},
    ]


def _metadata(job: VerifierJob) -> dict[str, Any]:
    return {"name": job.name, "namespace": job.verifier.namespace, "labels": _labels()}


def _labels() -> dict[str, str]:
    return {names.APPLICATION_NAME: "meshscrape-verify", names.MANAGED_BY: "meshscrape"}
