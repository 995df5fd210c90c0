"""Plans in bootstrap and legacy mode, and the way from one to the other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshscrape.envoy.override import LIMIT_BYTES, is_ours
from meshscrape.istio.allow_list import parse_scrapers
from support.objects import (
    cluster,
    control_plane,
    deployment,
    injected_namespace,
    meta,
    namespace,
    own_proxy,
    peer_authentication,
    rendered_gateway,
    service,
)
from support.planning import annotations, changed, codes, planned, proxy_config, refs, settled, template
from support.scraping_objects import plain_prometheus

EXCLUDE = "traffic.sidecar.istio.io/excludeInboundPorts"
SECURE = "prometheus.istio.io/secure-port"
OVERRIDE = "sidecar.istio.io/bootstrapOverride"
SCRAPER = "spiffe://cluster.local/ns/monitoring/sa/prometheus"
ALLOW = parse_scrapers(f"spiffe:{SCRAPER}")
PLAIN: dict[str, Any] = {"prometheus": "none", "harden": False, "scrapers": ALLOW}


def shop(version: str = "1.30.1", **workload: Any) -> list[dict[str, Any]]:
    return [*control_plane(version), injected_namespace(), deployment(**workload), service()]


def override(plan: Any) -> Any:
    """The override in the planned ConfigMap."""
    return json.loads(changed(plan, "ConfigMap")["data"]["custom_bootstrap.json"])


@pytest.mark.parametrize(
    ("version", "mode"),
    [("1.31.0", "native"), ("1.32.0-rc.0", "native"), ("1.30.9", "legacy"), ("1.14.3", "legacy")],
)
def test_the_version_of_the_proxy_decides(version: str, mode: str) -> None:
    """Auto: native from 1.31 on, pre-releases included; legacy before."""
    plan = settled(cluster(shop(version)), **PLAIN)
    assert list(plan.modes.values()) == [mode]


def test_version_that_contradicts_the_objects_is_reported() -> None:
    """What the control plane's objects tell wins over the option, and the plan says so."""
    plan = settled(cluster(shop("1.29.2")), istio_version="1.31.0", **PLAIN)
    assert list(plan.modes.values()) == ["legacy"]
    assert "version-contradicts" in codes(plan)
    for version in ("1.29.2", None):
        assert "version-contradicts" not in codes(
            settled(cluster(shop("1.29.2")), istio_version=version, **PLAIN)
        )


def test_two_revisions_are_decided_apart() -> None:
    """Mid-upgrade: each workload by the proxy that its own revision injects."""
    objects = [
        *control_plane("1.31.0", "new"), *control_plane("1.29.2", "old"),
        namespace("a", {"istio.io/rev": "new"}), namespace("b", {"istio.io/rev": "old"}),
        deployment("one", "a"), deployment("two", "b"),
    ]  # fmt: skip
    plan = settled(cluster(objects), **PLAIN)
    assert {ref.name: mode for ref, mode in plan.modes.items()} == {"one": "native", "two": "legacy"}


class TestBootstrap:
    """The override's ConfigMap and the annotation that mounts it."""

    def test_a_sidecar_gets_the_listeners_and_the_list(self) -> None:
        """ConfigMap first, then the Deployment; announced by hand, as the injector knows nothing of it."""
        plan = settled(cluster(shop()), mode="bootstrap", **PLAIN)
        assert [each[2] for each in refs(plan)] == ["ConfigMap/meshscrape-bootstrap", "Deployment/httpbin"]
        names = [each["name"] for each in override(plan)["static_resources"]["listeners"]]
        assert names == ["meshscrape_secure_merged_metrics_15092"]
        assert SCRAPER in changed(plan, "ConfigMap")["data"]["scrapers.json"]
        found = annotations(plan)
        assert (found[OVERRIDE], found[SECURE], found[EXCLUDE]) == ("meshscrape-bootstrap", "15092", "15092")

    def test_bootstrap_works_for_an_unknown_version(self) -> None:
        """Forced, it is safe for any sidecar: what is too old refuses everybody."""
        plan = settled(cluster(injected_namespace(), deployment()), mode="bootstrap", **PLAIN)
        assert list(plan.modes.values()) == ["bootstrap"]

    def test_too_old_proxies_are_refused(self) -> None:
        """An Envoy that does not know the allow list's matcher is told apart by its version."""
        plan = settled(cluster(shop("1.15.0")), mode="bootstrap", **PLAIN)
        assert plan.changes == ()
        assert "bootstrap-too-old" in codes(plan)

    def test_istios_own_listeners_are_turned_off(self) -> None:
        """Two listeners on a port keep Envoy from starting; a mesh-wide default needs an explicit zero."""
        mesh = 'defaultConfig:\n  proxyMetadata:\n    ENVOY_SECURE_MERGED_METRICS_PORT: "15092"\n'
        objects = [*control_plane("1.31.0", mesh=mesh), injected_namespace(), deployment()]
        plan = settled(cluster(objects), mode="bootstrap", **PLAIN)
        assert proxy_config(plan)["proxyMetadata"] == {"ENVOY_SECURE_MERGED_METRICS_PORT": "0"}

    def test_a_users_own_override_is_merged(self) -> None:
        """Only one ConfigMap can be mounted, so the listeners go into the one that is there."""
        own = {"static_resources": {"listeners": [{"name": "mine"}]}, "stats_sinks": []}
        config = {
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("mine"),
            "data": {"custom_bootstrap.json": json.dumps(own), "other": "kept"},
        }  # fmt: skip
        plan = settled(cluster(shop(annotations={OVERRIDE: "mine"}), config), mode="bootstrap", **PLAIN)
        names = [each["name"] for each in override(plan)["static_resources"]["listeners"]]
        assert names == ["mine", "meshscrape_secure_merged_metrics_15092"]
        assert override(plan)["stats_sinks"] == []
        assert changed(plan, "ConfigMap")["data"]["other"] == "kept"
        assert annotations(plan)[OVERRIDE] == "mine"

    def test_an_unknown_override_is_refused(self) -> None:
        """An override whose ConfigMap was not given is not replaced."""
        plan = settled(cluster(shop(annotations={OVERRIDE: "mine"})), mode="bootstrap", **PLAIN)
        assert plan.changes == ()
        assert "override-unknown" in codes(plan)

    def test_scraper_of_another_ca_is_noted(self) -> None:
        """No certificate of the mesh's own CA has a DNS name: the plan says what Istio needs to trust it."""
        scrapers = parse_scrapers("dns:vm.example.com")
        plan = settled(cluster(shop()), mode="bootstrap", **(PLAIN | {"scrapers": scrapers}))
        assert "foreign-ca" in codes(plan)
        assert "foreign-ca" not in codes(settled(cluster(shop()), mode="bootstrap", **PLAIN))

    def test_another_list_restarts_nothing(self) -> None:
        """Envoy follows the list, so a further scraper changes the ConfigMap alone."""
        inventory = cluster(shop())
        first = settled(inventory, mode="bootstrap", **PLAIN)
        more = parse_scrapers(f"spiffe:{SCRAPER},dns:vmagent.example.com")
        second = settled(first.apply(inventory), mode="bootstrap", **(PLAIN | {"scrapers": more}))
        assert [each[2] for each in refs(second)] == ["ConfigMap/meshscrape-bootstrap"]
        assert second.changes[0].restarts == ()

    def test_another_port_restarts(self) -> None:
        """Listeners are read at the start: their checksum is part of the pods."""
        inventory = cluster(shop())
        first = settled(inventory, mode="bootstrap", **PLAIN)
        second = settled(first.apply(inventory), mode="bootstrap", envoy_port=15091, **PLAIN)
        assert [each[2] for each in refs(second)] == ["ConfigMap/meshscrape-bootstrap", "Deployment/httpbin"]

    def test_dual_stack_listens_on_both(self) -> None:
        """The addresses of the pods in the dump tell which families there are."""
        pod = {
            "apiVersion": "v1", "kind": "Pod", "metadata": meta("x", "kube-system"),
            "spec": {"containers": []},
            "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
        }  # fmt: skip
        plan = settled(cluster(shop(), pod), mode="bootstrap", **PLAIN)
        (listener,) = override(plan)["static_resources"]["listeners"]
        more = [each["address"]["socket_address"]["address"] for each in listener["additional_addresses"]]
        assert [listener["address"]["socket_address"]["address"], *more] == ["0.0.0.0", "::"]

    def test_it_stays_far_below_the_limit_of_an_argument(self) -> None:
        """The agent passes the override as one argument of 128 kB at most."""
        plan = settled(cluster(shop()), mode="bootstrap", envoy_port=15091, **PLAIN)
        assert len(changed(plan, "ConfigMap")["data"]["custom_bootstrap.json"]) < LIMIT_BYTES / 2
        layers = override(plan)["layered_runtime"]["layers"]
        assert all(is_ours(each["name"]) for each in layers)

    def test_bootstrap_without_a_scraper_is_refused(self) -> None:
        """Without a scraper in the objects or on the command line there is no list to write."""
        plan = settled(cluster(shop()), mode="bootstrap", prometheus="none")
        assert plan.changes == ()
        assert "no-scraper" in codes(plan)

    def test_a_foreign_configmap_of_that_name_is_left_alone(self) -> None:
        """What meshscrape did not make, it does not overwrite."""
        foreign = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("meshscrape-bootstrap")}
        plan = settled(cluster(shop(), foreign), mode="bootstrap", **PLAIN)
        assert plan.changes == ()
        assert "name-taken" in codes(plan)


class TestLegacy:
    """Istio's own configuration for proxies before 1.31."""

    def test_a_sidecar_under_permissive(self) -> None:
        """Sidecar with the application's ports kept, STRICT on 15091, the scraper alone, the announcement."""
        plan = settled(cluster(shop()), **PLAIN)
        assert [each[2] for each in refs(plan)] == [
            "AuthorizationPolicy/meshscrape-httpbin",
            "PeerAuthentication/meshscrape-httpbin",
            "Sidecar/meshscrape-httpbin",
            "Deployment/httpbin",
        ]
        sidecar = changed(plan, "Sidecar")["spec"]
        assert sidecar["workloadSelector"] == {"labels": {"app": "httpbin"}}
        assert [each["port"]["number"] for each in sidecar["ingress"]] == [8080, 15091]
        assert sidecar["ingress"][-1]["defaultEndpoint"] == "127.0.0.1:15020"
        assert changed(plan, "PeerAuthentication")["spec"]["portLevelMtls"] == {"15091": {"mode": "STRICT"}}
        assert annotations(plan) == {SECURE: "15091"}

    def test_envoys_statistics_alone(self) -> None:
        """--legacy-source envoy leads 15091 to 15090; metrics of the application that go dark are named."""
        workload = shop(annotations={"prometheus.io/scrape": "true"})
        plan = settled(cluster(workload), legacy_source="envoy", **PLAIN)
        assert changed(plan, "Sidecar")["spec"]["ingress"][-1]["defaultEndpoint"] == "127.0.0.1:15090"
        assert annotations(plan)[SECURE] == "15091"
        assert "application-left-out" in codes(plan)
        assert "application-left-out" not in codes(settled(cluster(workload), **PLAIN))
        silent = settled(cluster(shop()), legacy_source="envoy", **PLAIN)
        assert "application-left-out" not in codes(silent)

    def test_the_source_can_be_changed(self) -> None:
        """The Sidecar of the plan's own follows the wish; nothing is restarted for it."""
        inventory = cluster(shop())
        after = settled(inventory, **PLAIN).apply(inventory)
        plan = settled(after, legacy_source="envoy", **PLAIN)
        assert [each[2] for each in refs(plan)] == ["Sidecar/meshscrape-httpbin"]
        assert plan.changes[0].restarts == ()

    def test_a_users_own_metrics_ingress_stays(self) -> None:
        """Where a Sidecar leads the port to the other source already, that is said, and left."""
        ingress = {"port": {"number": 15091, "protocol": "HTTP"}, "defaultEndpoint": "127.0.0.1:15090"}
        own = {
            "apiVersion": "networking.istio.io/v1", "kind": "Sidecar", "metadata": meta("mine"),
            "spec": {"workloadSelector": {"labels": {"app": "httpbin"}}, "ingress": [ingress]},
        }  # fmt: skip
        plan = settled(cluster(shop(), own), **PLAIN)
        assert not [each for each in refs(plan) if each[2].startswith("Sidecar")]
        assert "other-legacy-source" in codes(plan)
        assert "other-legacy-source" not in codes(
            settled(cluster(shop(), own), legacy_source="envoy", **PLAIN)
        )

    def test_policy_denies_every_client_but_the_scraper(self) -> None:
        """DENY of everybody else on that port: an ALLOW policy would deny all other traffic."""
        policy = changed(settled(cluster(shop()), **PLAIN), "AuthorizationPolicy")["spec"]
        assert policy["action"] == "DENY"
        rule, *others = policy["rules"]
        assert others == [
            {"to": [{"operation": {"ports": ["15091"], "notPaths": ["/stats/prometheus"]}}]},
            {"to": [{"operation": {"ports": ["15091"], "notMethods": ["GET", "HEAD"]}}]},
        ], "the agent's own server takes more than the scraper needs"
        assert rule["from"] == [{"source": {"notPrincipals": [SCRAPER.removeprefix("spiffe://")]}}]
        assert rule["to"] == [{"operation": {"ports": ["15091"]}}]

    def test_aliases_of_the_trust_domain_count(self) -> None:
        """Certificates of an older trust domain are the same scraper's."""
        mesh = "trustDomain: cluster.local\ntrustDomainAliases: [old.local]\n"
        objects = [*control_plane("1.30.1", mesh=mesh), injected_namespace(), deployment()]
        policy = changed(settled(cluster(objects), **PLAIN), "AuthorizationPolicy")["spec"]
        principals = policy["rules"][0]["from"][0]["source"]["notPrincipals"]
        assert principals == [f"{td}/ns/monitoring/sa/prometheus" for td in ("cluster.local", "old.local")]

    def test_strict_needs_no_policy_of_its_own(self) -> None:
        """Where the mesh is STRICT, no PeerAuthentication is added."""
        plan = settled(cluster(shop(), peer_authentication("STRICT")), **PLAIN)
        assert not [each for each in refs(plan) if "PeerAuthentication" in each[2]]

    def test_a_workloads_own_policy_is_extended(self) -> None:
        """Only the oldest policy of a workload counts, so the port goes into that one."""
        own = peer_authentication("PERMISSIVE", "default", app="httpbin")
        plan = settled(cluster(shop(), own), **PLAIN)
        spec = changed(plan, "PeerAuthentication", "default")["spec"]
        assert spec["mtls"] == {"mode": "PERMISSIVE"}
        assert spec["portLevelMtls"] == {"15091": {"mode": "STRICT"}}

    def test_a_workloads_own_sidecar_is_extended(self) -> None:
        """Two Sidecars for one workload are undefined, so the port goes into the one that is there."""
        egress = [{"hosts": ["./*"]}]
        own = {
            "apiVersion": "networking.istio.io/v1", "kind": "Sidecar", "metadata": meta("mine"),
            "spec": {"workloadSelector": {"labels": {"app": "httpbin"}}, "egress": egress},
        }  # fmt: skip
        spec = changed(settled(cluster(shop(), own), **PLAIN), "Sidecar", "mine")["spec"]
        assert spec["egress"] == egress
        assert [each["port"]["number"] for each in spec["ingress"]] == [8080, 15091]

    def test_the_namespaces_egress_is_inherited(self) -> None:
        """A Sidecar of the workload's own replaces the namespace's: its egress goes along."""
        egress = [{"hosts": ["./*", "istio-system/*"]}]
        wide = {
            "apiVersion": "networking.istio.io/v1", "kind": "Sidecar", "metadata": meta("default"),
            "spec": {"egress": egress},
        }  # fmt: skip
        plan = settled(cluster(shop(), wide), **PLAIN)
        assert changed(plan, "Sidecar", "meshscrape-httpbin")["spec"]["egress"] == egress

    def test_the_port_is_captured(self) -> None:
        """An exclusion of 15091, right for native mode, is wrong here and goes."""
        plan = settled(cluster(shop(annotations={EXCLUDE: "15091,3306"})), **PLAIN)
        assert annotations(plan)[EXCLUDE] == "3306"

    def test_an_explicit_list_of_captured_ports_gets_the_port(self) -> None:
        """What is not captured never reaches the Sidecar's listener."""
        include = "traffic.sidecar.istio.io/includeInboundPorts"
        plan = settled(cluster(shop(annotations={include: "8080"})), **PLAIN)
        assert annotations(plan)[include] == "8080,15091"

    def test_a_sidecar_that_captures_nothing_is_refused(self) -> None:
        """Legacy mode is the sidecar's interception; without it there is only bootstrap."""
        include = "traffic.sidecar.istio.io/includeInboundPorts"
        plan = settled(cluster(shop(annotations={include: ""})), **PLAIN)
        assert plan.changes == ()
        assert "legacy-not-intercepted" in codes(plan)

    @pytest.mark.parametrize(("version", "api"), [("1.21.0", "v1beta1"), ("1.22.0", "v1")])
    def test_the_api_version_fits_the_control_plane(self, version: str, api: str) -> None:
        """The v1 APIs exist from 1.22 on."""
        plan = settled(cluster(shop(version)), **PLAIN)
        assert changed(plan, "Sidecar")["apiVersion"] == f"networking.istio.io/{api}"

    def test_a_scraper_from_outside_cannot_be_allowed(self) -> None:
        """Istio's policies know workloads only: a DNS name is said to be impossible, nobody is let in."""
        plan = settled(cluster(shop()), **(PLAIN | {"scrapers": parse_scrapers("dns:vm.example.com")}))
        assert "dns-scraper-in-legacy" in codes(plan)
        source = changed(plan, "AuthorizationPolicy")["spec"]["rules"][0]["from"][0]["source"]
        assert source == {"notPrincipals": ["-"]}

    def test_legacy_is_safe_for_an_unknown_version(self) -> None:
        """Every version has these objects, so legacy can be forced."""
        plan = settled(cluster(injected_namespace(), deployment()), mode="legacy", **PLAIN)
        assert list(plan.modes.values()) == ["legacy"]


class TestMigration:
    """New listeners first, the old objects last."""

    def upgraded(self, *more: Any) -> Any:
        """A cluster in legacy mode whose control plane has become 1.31."""
        before = cluster(*shop("1.30.1"), *more)
        after = settled(before, **PLAIN).apply(before)
        newer = cluster(control_plane("1.31.0"))
        return after.changed(list(newer), ())

    @pytest.mark.parametrize("mode", ["auto", "bootstrap"])
    def test_the_old_objects_go_last(self, mode: str) -> None:
        """The Deployment moves to 15092; Sidecar, PeerAuthentication and AuthorizationPolicy go after it."""
        plan = settled(self.upgraded(), **(PLAIN | {"mode": mode}))
        phases = {name: phase for phase, _, name in refs(plan)}
        assert annotations(plan)[SECURE] == "15092"
        assert phases["Deployment/httpbin"] == "listeners"
        removed = [name for phase, action, name in refs(plan) if (phase, action) == ("removal", "delete")]
        assert removed[0] == "Sidecar/meshscrape-httpbin"
        assert set(removed) == {
            f"{kind}/meshscrape-httpbin" for kind in ("Sidecar", "AuthorizationPolicy", "PeerAuthentication")
        }

    def test_a_users_own_sidecar_keeps_the_rest(self) -> None:
        """Of a Sidecar that does more, only the metrics port is taken out."""
        own = {
            "apiVersion": "networking.istio.io/v1", "kind": "Sidecar", "metadata": meta("mine"),
            "spec": {"workloadSelector": {"labels": {"app": "httpbin"}}, "egress": [{"hosts": ["./*"]}]},
        }  # fmt: skip
        plan = settled(self.upgraded(own), **PLAIN)
        spec = changed(plan, "Sidecar", "mine")["spec"]
        assert [each["port"]["number"] for each in spec["ingress"]] == [8080]

    def test_a_shared_sidecar_stays_while_it_serves_others(self) -> None:
        """The documented Sidecar is the namespace's: it goes when nobody needs it any more."""
        wide = {
            "apiVersion": "networking.istio.io/v1", "kind": "Sidecar", "metadata": meta("secure-metrics"),
            "spec": {"ingress": [{
                "port": {"number": 15091, "name": "https-metrics", "protocol": "HTTP"},
                "defaultEndpoint": "127.0.0.1:15020",
            }]},
        }  # fmt: skip
        announced = {SECURE: "15091"}
        objects = [
            *control_plane("1.31.0"), injected_namespace(), wide, peer_authentication("STRICT"),
            deployment("a", annotations=announced), deployment("b", annotations=announced),
        ]  # fmt: skip
        one = settled(cluster(objects), **PLAIN, selector={"matchLabels": {"app": "a"}})
        both = settled(cluster(objects), **PLAIN)
        assert not [each for each in refs(one) if each[0] == "removal"]
        assert "still-serving" in codes(one)
        assert ("removal", "delete", "Sidecar/secure-metrics") in refs(both)


def test_the_found_prometheus_is_the_scraper() -> None:
    """Without --scraper, the identity of the Prometheus in the objects is the list."""
    plan = planned(cluster(shop(), plain_prometheus()), mode="bootstrap", prometheus="none", harden=False)
    assert SCRAPER in changed(plan, "ConfigMap")["data"]["scrapers.json"]
    assert template(plan)["metadata"]["annotations"][OVERRIDE] == "meshscrape-bootstrap"


def test_forced_legacy_turns_native_listeners_off() -> None:
    """Otherwise Istio's own port would stay open to every workload of the mesh, beside the listed one."""
    own = {"proxy.istio.io/config": 'proxyMetadata: {ENVOY_SECURE_MERGED_METRICS_PORT: "15092"}'}
    plan = settled(cluster(shop("1.31.0", annotations=own)), mode="legacy", **PLAIN)
    assert proxy_config(plan)["proxyMetadata"] == {"ENVOY_SECURE_MERGED_METRICS_PORT": "0"}
    assert annotations(plan)[SECURE] == "15091"


class TestFromBootstrap:
    """Workloads that have the override already."""

    def bootstrapped(self, version: str = "1.31.0", **workload: Any) -> Any:
        inventory = cluster(shop(version, **workload))
        return settled(inventory, mode="bootstrap", **PLAIN).apply(inventory)

    @pytest.mark.parametrize("version", ["1.31.0", "1.29.0"])
    def test_auto_keeps_legacy_objects(self, version: str) -> None:
        """Native listeners on the same port would keep Envoy from starting, on every pod."""
        plan = settled(self.bootstrapped(version), **PLAIN)
        assert plan.changes == ()
        assert list(plan.modes.values()) == ["bootstrap"]

    @pytest.mark.parametrize("mode", ["native", "legacy"])
    def test_other_mode_removes_the_override(self, mode: Any) -> None:
        """In the same change of the template, so that no pod ever has both."""
        plan = settled(self.bootstrapped(), mode=mode, **PLAIN)
        assert OVERRIDE not in annotations(plan)
        assert "meshscrape.io/bootstrap-checksum" not in annotations(plan)
        assert len([each for each in refs(plan) if each[2] == "Deployment/httpbin"]) == 1

    def test_override_of_the_user_is_not_removed(self) -> None:
        """Where our listeners stand in the user's override, the user decides."""
        config = {
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("mine"),
            "data": {"custom_bootstrap.json": "{}"},
        }  # fmt: skip
        inventory = cluster(shop("1.31.0", annotations={OVERRIDE: "mine"}), config)
        after = settled(inventory, mode="bootstrap", **PLAIN).apply(inventory)
        plan = settled(after, mode="native", **PLAIN)
        assert plan.changes == ()
        assert "override-opens-ports" in codes(plan)


def test_a_refused_workload_leaves_nothing_behind() -> None:
    """Where a later step is impossible, the objects of the earlier ones are not planned either."""
    gateway, made = rendered_gateway()
    made["spec"]["template"]["spec"]["containers"][0]["image"] = "docker.io/istio/proxyv2:1.21.0"
    plan = settled(cluster(control_plane("1.21.0"), injected_namespace(), gateway, made), **PLAIN)
    assert plan.changes == ()
    assert "gateway-infrastructure-too-old" in codes(plan)


def test_refused_workload_removes_no_shared_override() -> None:
    """The override of a namespace stays planned for the others when the first workload is refused."""
    broken = own_proxy("a", labels={"istio": "gw"}, image="docker.io/istio/proxyv2:1.30.1")
    broken["metadata"]["labels"] = {"operator.istio.io/component": "IngressGateways"}
    broken["spec"]["template"]["metadata"]["labels"]["sidecar.istio.io/inject"] = "false"
    broken["spec"]["template"]["spec"]["containers"][0]["name"] = "renamed"
    plan = settled(cluster(shop(), broken), mode="bootstrap", **PLAIN)
    assert ("listeners", "create", "ConfigMap/meshscrape-bootstrap") in refs(plan)
