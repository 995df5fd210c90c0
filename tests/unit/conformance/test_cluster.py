"""The parts of the cluster of processes that can be tested without root."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from conformance.cluster import environment, images, kubelet_server, node, pod, programs, volumes

POD = {
    "metadata": {
        "name": "web-1",
        "namespace": "shop",
        "uid": "u",
        "labels": {"app": "web", "zone": 'a"b'},
        "annotations": {"x/y": "z"},
    },
    "spec": {"serviceAccountName": "web"},
}
PLACE = environment.Place("node-1", "10.0.0.1", "10.0.0.9")


def test_atomic_write_replaces_all_files_by_one_rename(tmp_path: Path) -> None:
    """Readers follow `..data`; a file that left is gone, and nothing is written when nothing changed."""
    assert volumes.write_atomically(tmp_path, {"a": b"1", "d/b": b"2"})
    assert (tmp_path / "a").read_bytes() == b"1" and (tmp_path / "d/b").read_bytes() == b"2"
    first = os.readlink(tmp_path / "..data")
    assert not volumes.write_atomically(tmp_path, {"a": b"1", "d/b": b"2"})
    assert os.readlink(tmp_path / "..data") == first
    assert volumes.write_atomically(tmp_path, {"a": b"3"})
    assert (tmp_path / "a").read_bytes() == b"3"
    assert sorted(entry.name for entry in tmp_path.iterdir() if not entry.name.startswith("..")) == ["a"]
    assert not (tmp_path / first).exists()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "web-1"),
        ("spec.serviceAccountName", "web"),
        ("status.podIP", "10.0.0.9"),
        ("metadata.labels['app']", "web"),
        ("metadata.labels['absent']", ""),
        ("metadata.annotations", 'x/y="z"\n'),
        ("metadata.labels", 'app="web"\nzone="a\\"b"\n'),
    ],
)
def test_downward_api_returns_field(path: str, value: str) -> None:
    """Fields are read as the kubelet writes them."""
    assert environment.field(POD, PLACE, {"fieldRef": {"fieldPath": path}}) == value


def test_unknown_field_is_an_error() -> None:
    """A field that this kubelet does not know is not an empty string."""
    with pytest.raises(ValueError, match=r"spec\.hostname"):
        environment.field(POD, PLACE, {"fieldRef": {"fieldPath": "spec.hostname"}})


@pytest.mark.parametrize(
    ("what", "limits", "value"),
    [
        ("limits.cpu", {"cpu": "1500m"}, "2"),
        ("limits.cpu", {}, environment.NODE_RESOURCES["cpu"]),
        ("limits.memory", {"memory": "64Mi"}, str(64 * 2**20)),
        ("limits.memory", {}, str(4 * 2**30)),
    ],
)
def test_resource_field_uses_node_where_container_has_none(
    what: str, limits: dict[str, str], value: str
) -> None:
    """Limits are in whole CPUs and bytes."""
    assert environment.resource({"resource": what}, {"resources": {"limits": limits}}) == value


def test_variables_see_earlier_ones_and_objects() -> None:
    """`$(NAME)` means a variable above; a missing optional key gives no variable."""
    container = {
        "env": [
            {"name": "A", "value": "1"},
            {"name": "B", "value": "$(A)$(C) $$(A)"},
            {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {"name": "N", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "no", "optional": True}}},
        ]
    }
    found = environment.variables(
        POD, PLACE, 6443, container, lambda kind, name, _: {"k": f"{kind} {name}".encode()}
    )
    assert (found["A"], found["B"], found["S"]) == ("1", "1$(C) $(A)", "secret s")
    assert "N" not in found


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_frame_is_read_back(size: int) -> None:
    """Frames of every length form survive, masked ones too."""
    data = bytes(index % 251 for index in range(size))
    assert kubelet_server.read_frame(io.BytesIO(kubelet_server.frame(2, data))) == (2, data)


def test_masked_frame_is_unmasked() -> None:
    """What clients send is masked (RFC 6455, 5.7)."""
    masked = bytes.fromhex("818537fa213d7f9f4d5158")
    assert kubelet_server.read_frame(io.BytesIO(masked)) == (1, b"Hello")


def test_truncated_frame_ends_session() -> None:
    """A connection that breaks inside a frame is an end, not data."""
    with pytest.raises(EOFError):
        kubelet_server.read_frame(io.BytesIO(b"\x82\x05abc"))


def test_exit_code_reaches_kubectl() -> None:
    """kubectl takes a command's exit code from the cause `ExitCode`."""
    assert kubelet_server.exit_status(0)["status"] == "Success"
    assert kubelet_server.exit_status(3)["details"] == {"causes": [{"reason": "ExitCode", "message": "3"}]}


@pytest.mark.parametrize(
    ("restarts", "states", "expected"),
    [
        ("Always", [{"running": {}}], "Running"),
        ("Always", [{"waiting": {}}], "Pending"),
        ("Always", [{"running": {}}, {"waiting": {}}], "Pending"),
        ("Never", [{"terminated": {"exitCode": 0}}], "Succeeded"),
        ("Never", [{"terminated": {"exitCode": 0}}, {"terminated": {"exitCode": 1}}], "Failed"),
        ("Never", [{"terminated": {"exitCode": 0}}, {"running": {}}], "Running"),
    ],
)
def test_phase_follows_containers(
    restarts: str, states: list[dict[str, dict[str, int]]], expected: str
) -> None:
    """A pod's phase is that of its containers together."""
    statuses = [{"state": state, "restartCount": 0} for state in states]
    assert pod.phase({"restartPolicy": restarts}, True, statuses) == expected


def test_missing_image_is_told_as_the_kubelet_does() -> None:
    """First the failed attempt, then that the next one waits, with the failure in its message."""
    missing = pod.Unpulled("x:1", "not found", 100.0)
    assert missing.waiting(100.5) == {"reason": "ErrImagePull", "message": "not found"}
    later = missing.waiting(110.0)
    assert later["reason"] == "ImagePullBackOff"
    assert later["message"] == 'Back-off pulling image "x:1": ErrImagePull: not found'


def test_condition_keeps_the_time_of_its_last_change() -> None:
    """A condition that is as before keeps its time, and one that changed has a new one."""
    before = [
        {"type": "Ready", "status": "False", "lastTransitionTime": "then"},
        {"type": "Initialized", "status": "True", "lastTransitionTime": "then"},
    ]
    now = [{**each, "status": "True", "lastTransitionTime": "start"} for each in before]
    pod.keep_transitions(now, before)
    assert [each["lastTransitionTime"] == "then" for each in now] == [False, True]
    assert now[0]["lastTransitionTime"] != "start"


def _pod(name: str, ready: str, **meta: object) -> dict[str, object]:
    return {
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}, **meta},
        "status": {"podIP": f"ip-{name}", "conditions": [{"type": "Ready", "status": ready}]},
    }


def test_service_leads_to_ready_pod() -> None:
    """A name leads to a ready pod of its namespace, never to one that is being deleted."""
    service = {"metadata": {"name": "web", "namespace": "shop"}, "spec": {"selector": {"app": "web"}}}
    other = {"metadata": {"name": "web", "namespace": "bank"}, "spec": {"selector": {"app": "web"}}}
    pods = [_pod("a", "False"), _pod("b", "True"), _pod("0", "True", deletionTimestamp="now")]
    assert node.service_addresses([service, other], pods) == [("ip-b", "web", "shop")]


def test_bootstrap_template_must_have_layers() -> None:
    """A template whose runtime layers moved is an error: nothing would normalize paths."""
    assert '"normalize_path": 100' in images.normalizing('"layers": []').replace(
        "http_connection_manager.", ""
    )
    with pytest.raises(ValueError, match="runtime layers"):
        images.normalizing("{}")


def test_programs_have_pins() -> None:
    """Every program's version comes from its module's go.mod; two pins of Istio differ."""
    versions = {name: what.version for name, what in programs.BY_NAME.items()}
    assert all(version.startswith("v") for version in versions.values())
    assert versions["kube-apiserver"] == versions["kubectl"]
    assert versions["pilot-agent"] != versions["pilot-agent-1.30"]
    assert programs.key(programs.BY_NAME["pilot-agent"]) != programs.key(programs.BY_NAME["pilot-agent-1.30"])


def test_kubernetes_staging_modules_are_of_its_release() -> None:
    """`k8s.io/kubernetes` requires v0.0.0 of its staging modules: each is replaced by the release's own."""
    release = programs.BY_NAME["kube-apiserver"].version.replace("v1.", "v0.")
    assert programs.requirements("kubernetes")["k8s.io/client-go"] == release
