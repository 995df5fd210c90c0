"""Views of objects: what can be used is read, what cannot is a fault with its place in the object."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshscrape.errors import InputError
from meshscrape.istio.fields import Path
from meshscrape.kube.objects import Manifest, Ref, manifest_of
from meshscrape.kube.pod_targets import TargetMesh, targets_of
from meshscrape.kube.views.peer_authentication import PeerAuthentications, peer_authentication
from meshscrape.kube.views.pod import (
    declared_ports,
    env_of,
    env_variables,
    pod_addresses,
    service_account,
)
from meshscrape.kube.views.proxy import proxy_of
from meshscrape.kube.views.reading import Fault, Reading
from meshscrape.kube.views.service import service
from meshscrape.kube.views.sidecar import Sidecars, sidecar


def _object(kind: str, name: str, spec: Any, *, namespace: str = "shop", created: str = "") -> Manifest:
    metadata = {"name": name, "namespace": namespace} | ({"creationTimestamp": created} if created else {})
    return manifest_of({"apiVersion": "example.io/v1", "kind": kind, "metadata": metadata, "spec": spec})


def _paths(faults: tuple[Fault, ...] | list[Fault]) -> list[Path]:
    return [fault.path for fault in faults]


class TestPeerAuthentication:
    """Policies of a cluster: the readable part counts."""

    SELECTOR = {"matchLabels": {"app": "web"}}

    def test_reads_modes_and_ports(self) -> None:
        """A mode of UNSET inherits."""
        spec = {
            "selector": self.SELECTOR,
            "mtls": {"mode": "UNSET"},
            "portLevelMtls": {"9080": {"mode": "STRICT"}, "9100": {"mode": "UNSET"}},
        }
        policy = peer_authentication(_object("PeerAuthentication", "web", spec))
        assert (policy.selector, policy.mode) == ({"app": "web"}, None)
        assert policy.port_modes == {9080: "STRICT", 9100: None}
        assert policy.faults == ()

    @pytest.mark.parametrize(
        ("spec", "path"),
        [
            ("text", ("spec",)),
            ({"mtls": []}, ("spec", "mtls")),
            ({"mtls": {"mode": "strict"}}, ("spec", "mtls", "mode")),
            ({"mtls": {"mode": 5}}, ("spec", "mtls", "mode")),
            ({"selector": {"app": "web"}}, ("spec", "selector", "app")),
            ({"portLevelMtls": {"80": {"mode": "STRICT"}}}, ("spec", "portLevelMtls", "80")),
            (
                {"selector": SELECTOR, "portLevelMtls": {"http": {"mode": "STRICT"}}},
                ("spec", "portLevelMtls", "http"),
            ),
            (
                {"selector": {"matchLabels": {"app": 1}}, "mtls": {}},
                ("spec", "selector", "matchLabels", "app"),
            ),
        ],
    )
    def test_notes_what_cannot_be_used(self, spec: Any, path: Path) -> None:
        """The fault has the place of the field, and the policy says nothing there."""
        policy = peer_authentication(_object("PeerAuthentication", "web", spec))
        assert path in _paths(policy.faults)
        assert policy.mode is None
        assert "http" not in policy.port_modes

    def test_the_oldest_of_several_counts(self) -> None:
        """Age decides at one level, then the name; what has no time comes last."""
        older = _object(
            "PeerAuthentication", "z", {"mtls": {"mode": "STRICT"}}, created="2026-01-01T00:00:00Z"
        )
        newer = _object(
            "PeerAuthentication", "a", {"mtls": {"mode": "DISABLE"}}, created="2026-02-01T00:00:00Z"
        )
        file = _object("PeerAuthentication", "0", {"mtls": {"mode": "PERMISSIVE"}})
        policies = PeerAuthentications(map(peer_authentication, (file, newer, older)))
        assert policies.of("shop", {}).default == "STRICT"
        assert policies.of("shop", {}).source == older.ref

    def test_a_selecting_policy_of_the_root_namespace_is_ignored(self) -> None:
        """As in Istio, which tells by the namespace before it looks at the selector."""
        spec = {"selector": self.SELECTOR, "mtls": {"mode": "STRICT"}}
        policy = peer_authentication(_object("PeerAuthentication", "web", spec, namespace="istio-system"))
        mtls = PeerAuthentications([policy]).of("istio-system", {"app": "web"})
        assert (mtls.default, mtls.source) == ("PERMISSIVE", None)


class TestService:
    """Which port of a pod a Service's port leads to."""

    DECLARED = declared_ports(
        {
            "spec": {
                "containers": [
                    {
                        "ports": [
                            {"containerPort": 9080, "name": "http"},
                            {"containerPort": 53, "protocol": "UDP"},
                        ]
                    },
                    {"ports": [{"containerPort": 9081, "name": "http"}]},
                ]
            }
        }
    )

    @pytest.mark.parametrize(
        ("port", "number"),
        [
            ({"port": 80}, 80),
            ({"port": 80, "targetPort": 8080}, 8080),
            ({"port": 80, "targetPort": "http"}, 9080),
            ({"port": 80, "targetPort": "metrics"}, None),
        ],
    )
    def test_leads_to_a_port_of_the_pod(self, port: Any, number: int | None) -> None:
        """By number without a declaration, by name to the first container that has it."""
        (found,) = service({"spec": {"ports": [port]}}).ports
        assert found.number(self.DECLARED) == number

    def test_selects_no_pod_without_a_selector(self) -> None:
        """Its endpoints are somebody else's to write."""
        assert service({"spec": {"selector": {"a": "b"}}}).selects({"a": "b", "c": "d"})
        assert not service({"spec": {"selector": {"a": "b"}}}).selects({"c": "d"})
        assert not service({"spec": {}}).selects({})

    @pytest.mark.parametrize(
        ("spec", "path"),
        [
            ({"ports": {}}, ("spec", "ports")),
            ({"ports": ["http"]}, ("spec", "ports", 0)),
            ({"ports": [{}]}, ("spec", "ports", 0, "port")),
            ({"ports": [{"port": 0}]}, ("spec", "ports", 0, "port")),
            ({"ports": [{"port": True}]}, ("spec", "ports", 0, "port")),
            ({"ports": [{"port": 80, "targetPort": 99999}]}, ("spec", "ports", 0, "targetPort")),
            ({"ports": [{"port": 80, "targetPort": [1]}]}, ("spec", "ports", 0, "targetPort")),
            ({"ports": [{"port": 80, "targetPort": True}]}, ("spec", "ports", 0, "targetPort")),
            ({"ports": [{"port": 80, "protocol": "tcp"}]}, ("spec", "ports", 0, "protocol")),
            ({"selector": ["app"]}, ("spec", "selector")),
        ],
    )
    def test_notes_what_cannot_be_used(self, spec: Any, path: Path) -> None:
        """A wrong port does not end the reading."""
        assert _paths(service({"spec": spec}).faults) == [path]


class TestPod:
    """Containers, ports, environment, identity and addresses of a pod."""

    def test_leaves_ports_of_the_proxy_out(self) -> None:
        """What the sidecar listens on is not the application's."""
        proxy = {"name": "istio-proxy", "ports": [{"containerPort": 15090}]}
        template = {"spec": {"containers": [{"name": "web", "ports": [{"containerPort": 80}]}, proxy]}}
        assert [port.number for port in declared_ports(template)] == [80, 15090]
        assert [port.number for port in declared_ports(template, proxy=False)] == [80]

    def test_the_last_variable_of_a_name_counts(self) -> None:
        """As in Kubernetes; a value from elsewhere is unknown."""
        env = [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "B", "valueFrom": {}}]
        assert env_of({"env": env}) == {"A": "2"}
        reading = Reading.of({"env": [*env, {"value": "3"}, {"name": "C", "value": 3}]})
        assert [(item.name, item.value) for item in env_variables(reading)] == [
            ("A", "1"),
            ("A", "2"),
            ("B", None),
            ("C", ""),
        ]
        assert _paths(reading.faults) == [("env", 3, "name"), ("env", 4, "value")]

    @pytest.mark.parametrize(
        ("spec", "account"),
        [
            ({}, "default"),
            ({"serviceAccountName": "web"}, "web"),
            ({"serviceAccount": "old"}, "old"),
            ({"serviceAccountName": "web", "serviceAccount": "old"}, "web"),
            ({"serviceAccountName": ""}, "default"),
        ],
    )
    def test_runs_as_a_service_account(self, spec: Any, account: str) -> None:
        """Both spellings of the field are read; `default` when it is absent."""
        assert service_account({"spec": spec}) == account

    def test_has_one_address_or_one_of_each_family(self) -> None:
        """The main address is first, and is not repeated."""
        status = {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}, {}]}
        assert pod_addresses({"status": status}) == ("10.0.0.1", "fd00::1")
        assert pod_addresses({"status": {"podIP": ""}}) == ()
        assert pod_addresses({}) == ()


class TestSidecar:
    """Which Sidecar is in force."""

    @staticmethod
    def _of(*found: Manifest) -> list[str]:
        return [item.ref.name for item in Sidecars(map(sidecar, found)).of("shop", {"app": "web"})]

    def test_the_nearest_is_in_force(self) -> None:
        """One that selects the workload, else the namespace's, else the root namespace's."""
        selecting = _object("Sidecar", "selecting", {"workloadSelector": {"labels": {"app": "web"}}})
        other = _object("Sidecar", "other", {"workloadSelector": {"labels": {"app": "tool"}}})
        wide = _object("Sidecar", "wide", {})
        mesh = _object("Sidecar", "mesh", {}, namespace="istio-system")
        assert self._of(mesh, wide, other, selecting) == ["selecting"]
        assert self._of(mesh, wide, other) == ["wide"]
        assert self._of(mesh, other) == ["mesh"]
        assert self._of(other) == []

    def test_the_oldest_of_several_comes_first(self) -> None:
        """The others are kept, because a second one is a mistake to report."""
        newer = _object("Sidecar", "a", {}, created="2026-02-01T00:00:00Z")
        older = _object("Sidecar", "b", {}, created="2026-01-01T00:00:00Z")
        assert self._of(newer, older) == ["b", "a"]


_FIELDS = st.sampled_from(
    [
        "selector",
        "matchLabels",
        "mtls",
        "mode",
        "portLevelMtls",
        "80",
        "ports",
        "port",
        "targetPort",
        "name",
        "protocol",
        "workloadSelector",
        "labels",
        "ingress",
        "containers",
        "initContainers",
        "containerPort",
        "env",
        "value",
        "args",
        "image",
        "serviceAccountName",
        "podIP",
        "podIPs",
        "phase",
        "annotations",
        "ownerReferences",
        "containerStatuses",
        "namespace",
        "deletionTimestamp",
    ]
)
_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 70_000) | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(_FIELDS | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=25,
)


@given(st.dictionaries(st.sampled_from(["spec", "metadata", "status"]), _JUNK, max_size=3))
def test_views_of_arbitrary_objects_end_in_a_view(data: dict[str, Any]) -> None:
    """An object of a cluster is somebody's text: whatever it holds, reading ends, and faults have a place."""
    manifest = Manifest(Ref("", "Any", "shop", "web"), data)
    read = [peer_authentication(manifest), service(data), sidecar(manifest)]
    for view in read:
        assert all(fault.path[0] == "spec" and fault.what and fault.remedy for fault in view.faults)
    mtls = PeerAuthentications([peer_authentication(manifest)]).of("shop", {"app": "web"})
    assert mtls.of(80) in ("STRICT", "PERMISSIVE", "DISABLE")
    assert all(0 < port.number <= 65535 for port in declared_ports(data))
    assert all(isinstance(value, str) for value in env_of(data).values())
    assert service_account(data)
    proxy = proxy_of(data)
    assert proxy is None or proxy.role in ("", "sidecar", "router", "waypoint")
    try:
        targets = targets_of(data, TargetMesh("example.org"))
    except InputError:
        return
    assert all(target.addresses and 0 < target.port <= 65535 for target in targets)
