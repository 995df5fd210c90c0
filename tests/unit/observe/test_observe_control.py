"""Control planes: revisions, tags, versions, mesh configuration."""

from __future__ import annotations

from typing import Any

from meshscrape.observe.model import MeshSettings
from support.examples import CLUSTERS, asm
from support.objects import config_map, control_plane, deployment, namespace, observed, only, webhook


def test_the_version_is_what_the_injector_gives() -> None:
    """values.global.tag decides, before istiod's own image: that is what a restarted pod gets."""
    plane = only(
        observed(control_plane("1.30.1", values={"global": {"tag": "1.30.2-distroless"}})).control_planes
    )
    assert (str(plane.version), plane.external, plane.revision) == ("1.30.2", False, "default")
    assert "istio-sidecar-injector" in plane.version_source


def test_istiods_image_tells_where_the_injectors_values_do_not() -> None:
    """Without a readable tag in the values, istiod's image is the source."""
    plane = only(observed(control_plane("1.30.1", values={"global": {"tag": "latest"}})).control_planes)
    assert str(plane.version) == "1.30.1"
    assert plane.version_source.endswith("image")


def test_revisions_and_tags() -> None:
    """Each revision is a control plane; a tag is a name of its revision, the default one too."""
    found = observed(
        control_plane("1.29.2", "1-29-2"), control_plane("1.31.0", "1-31-0", tags=["default", "stable"])
    ).control_planes
    assert [(each.revision, str(each.version), each.tags) for each in found] == [
        ("1-29-2", "1.29.2", ()),
        ("1-31-0", "1.31.0", ("default", "stable")),
    ]


def test_tags_as_services() -> None:
    """From 1.28 on a tag can be a Service of istiod."""
    tag = {
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "istiod-revision-tag-stable", "namespace": "istio-system",
            "labels": {"istio.io/rev": "1-31-0", "istio.io/tag": "stable"},
        },
        "spec": {},
    }  # fmt: skip
    plane = only(observed(control_plane("1.31.0", "1-31-0"), tag).control_planes)
    assert plane.tags == ("stable",)


def test_the_default_revision_from_the_validator() -> None:
    """Without a tag `default`, the default validator says which revision is the default one."""
    validator = webhook("istiod-default-validator", {"istio.io/rev": "1-31-0"})
    validator["kind"] = "ValidatingWebhookConfiguration"
    found = observed(
        control_plane("1.31.0", "1-31-0"),
        validator,
        namespace("default", istio_injection="enabled"),
        deployment(),
    )
    assert str(only(w for w in found.workloads if w.name == "httpbin").versions.after) == "1.31.0"


def test_mesh_configuration() -> None:
    """Trust domain, root namespace, defaults of proxies and merging come from the mesh's ConfigMap."""
    mesh = {
        "trustDomain": "example.org", "trustDomainAliases": ["old.org"], "rootNamespace": "mesh",
        "enablePrometheusMerge": False, "defaultConfig": {"proxyMetadata": {"A": "b"}},
    }  # fmt: skip
    found = observed(control_plane(mesh=mesh), namespace("default", istio_injection="enabled"), deployment())
    assert found.mesh.trust_domain == "example.org"
    assert found.mesh.trust_domain_aliases == ("old.org",)
    assert found.mesh.root_namespace == "mesh"
    assert not found.mesh.prometheus_merge
    workload = only(w for w in found.workloads if w.name == "httpbin")
    assert workload.spiffe_id == "spiffe://example.org/ns/default/sa/httpbin"
    assert workload.proxy_metadata == {"A": "b"}


def test_istios_defaults_without_a_configuration() -> None:
    """Nothing found means Istio's defaults, and says so."""
    mesh = observed(deployment()).mesh
    assert mesh == MeshSettings()
    assert not mesh.found


def test_unreadable_mesh_configuration_does_not_crash() -> None:
    """A mesh configuration that is no YAML gives the defaults."""
    assert observed(config_map("istio", {"mesh": "a: ["})).mesh.trust_domain == "cluster.local"


def test_option_tells_the_version_without_a_control_plane() -> None:
    """--istio-version says what is there when the dump does not; without it the version is unknown."""
    app = [namespace("default", istio_injection="enabled"), deployment()]
    workload = only(observed(app, istio_version="1.31.0").workloads)
    assert str(workload.versions.after) == "1.31.0"
    plain = observed(app)
    assert plain.control_planes == ()
    assert not only(plain.workloads).versions.after.known


def test_version_in_the_objects_wins_over_the_option() -> None:
    """A version that the objects tell is not overridden, and the contradiction is reported."""
    found = observed(control_plane("1.29.2"), istio_version="1.31.0")
    assert str(only(found.control_planes).version) == "1.29.2"
    assert "version-contradicts" in {each.code for each in found.pitfalls}


def test_a_control_plane_outside_the_cluster() -> None:
    """Without an istiod Deployment behind its webhook a control plane is external."""
    assert only(observed(control_plane(istiod=False)).control_planes).external


def test_asm_is_recognised() -> None:
    """ASM's proxies and objects tell that it is ASM; its control plane is elsewhere, of unknown version."""
    found = observed(asm())
    plane = only(found.control_planes)
    assert (plane.flavour, plane.external, plane.version.known) == ("asm", True, False)
    workload = only(w for w in found.workloads if w.name == "httpbin")
    assert (workload.flavour, str(workload.versions.now)) == ("asm", "1.18.0")


def test_asm_is_recognised_by_its_proxies_alone() -> None:
    """Manifests without objects of ASM's group are ASM's when the proxy's image is."""
    parts = [each for each in asm() if "alibabacloud" not in each["apiVersion"]]
    assert {plane.flavour for plane in observed(parts).control_planes} == {"asm"}


def test_every_cluster_observes_the_same_twice() -> None:
    """Observing depends on nothing but the objects."""
    for build in CLUSTERS.values():
        assert observed(build()) == observed(build())


def istio_operator(**spec: Any) -> dict[str, Any]:
    """Return an IstioOperator as `istioctl install -f` reads it."""
    return {
        "apiVersion": "install.istio.io/v1alpha1",
        "kind": "IstioOperator",
        "metadata": {"name": "iop.yaml:1", "namespace": "istio-system"},
        "spec": spec,
    }


def test_an_istio_operator_tells_what_no_object_of_the_cluster_tells() -> None:
    """Version, revision, mesh configuration and values of an installation that is not in the dump."""
    operator = istio_operator(
        tag="1.31.0",
        revision="canary",
        meshConfig={"trustDomain": "example.org", "defaultConfig": {"proxyMetadata": {"A": "b"}}},
        values={"global": {"proxy": {"excludeInboundPorts": "15091"}}},
    )
    plane = only(observed(operator).control_planes)
    assert (plane.revision, str(plane.version), plane.external) == ("canary", "1.31.0", True)
    assert (plane.mesh.trust_domain, plane.mesh.default_metadata) == ("example.org", {"A": "b"})
    assert plane.mesh.exclude_inbound_ports == ("15091",)


def test_objects_in_the_cluster_win_over_an_istio_operator() -> None:
    """The file may be older than what runs."""
    operator = istio_operator(tag="1.20.0", meshConfig={"trustDomain": "old.org"})
    plane = only(observed(control_plane("1.31.0"), operator).control_planes)
    assert (str(plane.version), plane.mesh.trust_domain) == ("1.31.0", "cluster.local")


def test_an_istio_operator_that_says_nothing_leaves_the_version_unknown() -> None:
    """Its tag may be missing or no version."""
    for spec in ({}, {"tag": "latest"}, {"meshConfig": []}):
        plane = only(observed(istio_operator(**spec)).control_planes)
        assert not plane.version.known
        assert plane.mesh == MeshSettings()
