"""A new Prometheus of a cluster: every object complete and valid, credentials that work, least rights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import pytest
import yaml

from meshscrape.errors import InputError
from meshscrape.prometheus.kubernetes_sd import ApplicationPort
from meshscrape.prometheus.new_prometheus import PrometheusOptions, prometheus_objects
from support.schemas import assert_valid
from support.upstream import needs_upstream

Kind = Literal["addon", "operator"]
KINDS: tuple[Kind, ...] = ("addon", "operator")
WEB = ApplicationPort("shop", "web", {"app": "web"}, 9080, "/metrics", {"svc": "web"}, "http-web")
OPTIONS = PrometheusOptions("monitoring")
FULL = PrometheusOptions(
    "monitoring",
    "scraper",
    revision="canary",
    namespaces=("shop", "bank"),
    applications=(WEB,),
    harden=True,
    network_policy=True,
    labels={"team": "sre"},
)


def of_kind(kind: Kind, wanted: str, options: PrometheusOptions = OPTIONS) -> list[dict[str, Any]]:
    """The rendered objects of a Kubernetes kind."""
    return [each for each in prometheus_objects(kind, options) if each["kind"] == wanted]


def template(kind: Kind, options: PrometheusOptions = OPTIONS) -> dict[str, Any]:
    """The pod's metadata and specification, however the kind spells them."""
    if kind == "addon":
        found: dict[str, Any] = of_kind(kind, "Deployment", options)[0]["spec"]["template"]
        return found
    spec = of_kind(kind, "Prometheus", options)[0]["spec"]
    container = {"name": "prometheus", "volumeMounts": spec["volumeMounts"]}
    return {
        "metadata": spec["podMetadata"],
        "spec": {"containers": [container], "volumes": spec["volumes"]},
    }


@needs_upstream
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [OPTIONS, FULL, replace(OPTIONS, rules=None)])
def test_every_object_is_valid_in_closed_schemas(kind: Kind, options: PrometheusOptions) -> None:
    """Nothing that an API server would refuse or silently drop."""
    objects = prometheus_objects(kind, options)
    assert_valid(*objects)
    names = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in objects]
    assert len(set(names)) == len(names)
    assert all(each["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "meshscrape" for each in objects)


@pytest.mark.parametrize("kind", KINDS)
def test_rendering_is_deterministic_and_shares_nothing(kind: Kind) -> None:
    """Twice the same data, and changing one rendering does not reach the other."""
    first, second = prometheus_objects(kind, FULL), prometheus_objects(kind, FULL)
    assert first == second
    _spoil(first)
    assert second == prometheus_objects(kind, FULL)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sidecar_is_injected_by_label_and_intercepts_nothing(kind: Kind) -> None:
    """The label reaches the webhook; the annotations, not INBOUND_CAPTURE_PORTS, stop interception."""
    metadata = template(kind, FULL)["metadata"]
    assert metadata["labels"]["sidecar.istio.io/inject"] == "true"
    assert metadata["labels"]["istio.io/rev"] == "canary"
    assert metadata["labels"]["security.istio.io/tlsMode"] == "disabled", "mesh clients must not try mTLS"
    assert metadata["annotations"]["traffic.sidecar.istio.io/includeInboundPorts"] == ""
    assert metadata["annotations"]["traffic.sidecar.istio.io/includeOutboundIPRanges"] == ""
    assert metadata["annotations"]["prometheus.io/scrape"] == "false"
    assert "INBOUND_CAPTURE_PORTS" not in yaml.safe_dump(metadata)
    assert "istio.io/rev" not in template(kind)["metadata"]["labels"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_certificate_is_written_where_prometheus_reads_it(kind: Kind) -> None:
    """OUTPUT_CERTS, both mounts and the volume agree; it is in memory, and the proxy starts first."""
    pod = template(kind)
    annotations = pod["metadata"]["annotations"]
    config = yaml.safe_load(annotations["proxy.istio.io/config"])
    assert config["holdApplicationUntilProxyStarts"] is True
    directory = config["proxyMetadata"]["OUTPUT_CERTS"]
    (mounted,) = yaml.safe_load(annotations["sidecar.istio.io/userVolumeMount"]).items()
    assert mounted[1] == {"mountPath": directory}, "a map by name, writable for the agent"
    volume = next(each for each in pod["spec"]["volumes"] if each["name"] == mounted[0])
    assert volume["emptyDir"]["medium"] == "Memory"
    mount = next(m for m in pod["spec"]["containers"][0]["volumeMounts"] if m["name"] == mounted[0])
    assert mount["readOnly"] is True
    assert mounted[0] != "istio-certs", "Istio's own name where it mounts certificates"
    assert all(each.startswith(mount["mountPath"] + "/") for each in _files(kind))


def _files(kind: Kind) -> list[str]:
    if kind == "operator":
        tls = of_kind(kind, "Prometheus")[0]["spec"]["scrapeClasses"][0]["tlsConfig"]
        return [tls["caFile"], tls["certFile"], tls["keyFile"]]
    tls = _config(OPTIONS)["scrape_configs"][0]["tls_config"]
    return [tls["ca_file"], tls["cert_file"], tls["key_file"]]


@pytest.mark.parametrize("kind", KINDS)
def test_hardening_closes_the_scrapers_own_plaintext_ports(kind: Kind) -> None:
    """Only when asked: older proxies do not know it, and another Prometheus may scrape this one's sidecar."""
    metadata = [
        yaml.safe_load(template(kind, each)["metadata"]["annotations"]["proxy.istio.io/config"])
        for each in (OPTIONS, FULL)
    ]
    assert "METRICS_LOCALHOST_ACCESS_ONLY" not in metadata[0]["proxyMetadata"]
    assert metadata[1]["proxyMetadata"]["METRICS_LOCALHOST_ACCESS_ONLY"] == "true"


@pytest.mark.parametrize("kind", KINDS)
def test_every_role_is_bound_to_the_account_that_runs(kind: Kind) -> None:
    """A role without a binding yields no target."""
    for options in (OPTIONS, FULL):
        objects = prometheus_objects(kind, options)
        account = {"kind": "ServiceAccount", "name": options.service_account, "namespace": "monitoring"}
        roles = {_place(each) for each in objects if each["kind"] in ("Role", "ClusterRole")}
        bound = set()
        for each in objects:
            if each["kind"] in ("RoleBinding", "ClusterRoleBinding"):
                assert each["subjects"] == [account]
                bound.add(
                    (each["roleRef"]["kind"], each["metadata"].get("namespace"), each["roleRef"]["name"])
                )
        assert roles and roles == bound
        runs_as = [
            each["spec"].get("serviceAccountName") or each["spec"]["template"]["spec"]["serviceAccountName"]
            for each in objects
            if each["kind"] in ("Deployment", "Prometheus")
        ]
        assert runs_as == [options.service_account]


def test_rights_are_no_wider_than_the_scrape() -> None:
    """The add-on reads pods, nothing else; with namespaces named, it has no right of the cluster at all."""
    (role,) = of_kind("addon", "ClusterRole")
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]
    narrow = prometheus_objects("addon", FULL)
    assert not [each for each in narrow if each["kind"].startswith("Cluster")]
    assert {each["metadata"]["namespace"] for each in narrow if each["kind"] == "Role"} == {"shop", "bank"}
    assert _config(FULL)["scrape_configs"][0]["kubernetes_sd_configs"] == [
        {"role": "pod", "namespaces": {"names": ["bank", "shop"]}}
    ]


def test_the_operator_may_read_endpoint_slices() -> None:
    """ServiceMonitors need Services and their endpoints, of the API that the Prometheus object names."""
    (role,) = of_kind("operator", "ClusterRole")
    resources = {resource for rule in role["rules"] for resource in rule["resources"]}
    assert resources == {"pods", "services", "endpoints", "endpointslices"}
    (prometheus,) = of_kind("operator", "Prometheus")
    assert prometheus["spec"]["serviceDiscoveryRole"] == "EndpointSlice"


def test_every_namespace_that_a_monitor_looks_into_may_be_read() -> None:
    """With namespaces named, the Operator's Prometheus still finds itself."""
    objects = prometheus_objects("operator", FULL)
    readable = {each["metadata"]["namespace"] for each in objects if each["kind"] == "Role"}
    looked_into = {
        name
        for each in objects
        if each["kind"] in ("PodMonitor", "ServiceMonitor")
        for name in each["spec"]["namespaceSelector"]["matchNames"]
    }
    assert looked_into == readable == {"shop", "bank", "monitoring"}


def test_two_prometheuses_of_one_name_do_not_share_a_role() -> None:
    """Roles of the cluster carry the namespace in their name."""
    one, other = (of_kind("addon", "ClusterRole", PrometheusOptions(ns))[0] for ns in ("a", "b"))
    assert one["metadata"]["name"] != other["metadata"]["name"]
    assert "namespace" not in one["metadata"]


def test_the_operators_monitors_name_the_class_and_no_tls() -> None:
    """Any field of a tlsConfig in the monitor would take the class's insecureSkipVerify away."""
    (prometheus,) = of_kind("operator", "Prometheus", FULL)
    (scrape_class,) = prometheus["spec"]["scrapeClasses"]
    assert "default" not in scrape_class, "a default class changes every other monitor"
    monitors = [*of_kind("operator", "PodMonitor", FULL), *of_kind("operator", "ServiceMonitor", FULL)]
    secure = [each for each in monitors if not each["metadata"]["name"].endswith("-self")]
    assert len(secure) == 3
    for monitor in secure:
        assert monitor["spec"]["scrapeClass"] == scrape_class["name"]
        for endpoint in monitor["spec"].get("podMetricsEndpoints") or monitor["spec"]["endpoints"]:
            assert endpoint["scheme"] == "https"
            assert "tlsConfig" not in endpoint


def test_the_prometheus_object_selects_its_own_monitors_and_no_others() -> None:
    """Null selectors match nothing; `{}` would hand its credentials to everybody's monitors."""
    (prometheus,) = of_kind("operator", "Prometheus", FULL)
    for selector in ("podMonitorSelector", "serviceMonitorSelector", "ruleSelector"):
        wanted = prometheus["spec"][selector]["matchLabels"]
        assert wanted
        kind = {"podMonitorSelector": "PodMonitor", "serviceMonitorSelector": "ServiceMonitor"}.get(
            selector, "PrometheusRule"
        )
        chosen = of_kind("operator", kind, FULL)
        assert chosen
        assert all(wanted.items() <= each["metadata"]["labels"].items() for each in chosen)
        assert all(each["metadata"]["namespace"] == "monitoring" for each in chosen)
        assert selector.replace("Selector", "NamespaceSelector") not in prometheus["spec"]


def test_pod_monitors_select_the_declared_port_and_rewrite_the_address() -> None:
    """15091 and 15092 are not declared; the jobs keep the names that everybody uses."""
    merged, envoy, own = of_kind("operator", "PodMonitor", FULL)
    for monitor, job in ((merged, "istio-secure-merged-metrics"), (envoy, "istio-secure-envoy-metrics")):
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert (endpoint["port"], endpoint["path"]) == ("http-envoy-prom", "/stats/prometheus")
        assert [r for r in endpoint["relabelings"] if r.get("targetLabel") == "__address__"]
        assert endpoint["relabelings"][-1] == {"action": "replace", "targetLabel": "job", "replacement": job}
        assert monitor["spec"]["selector"] == {}
        assert monitor["spec"]["namespaceSelector"] == {"matchNames": ["bank", "shop"]}
    assert own["spec"]["namespaceSelector"] == {"matchNames": ["monitoring"]}
    assert of_kind("operator", "PodMonitor")[0]["spec"]["namespaceSelector"] == {"any": True}


def test_an_applications_own_port_goes_through_its_service() -> None:
    """By the name of the Service's port, over HTTP/1.1, in the application's namespace."""
    (monitor,) = of_kind("operator", "ServiceMonitor", FULL)
    (endpoint,) = monitor["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"], endpoint["enableHttp2"]) == ("http-web", "/metrics", False)
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": ["shop"]}
    assert monitor["spec"]["selector"] == {"matchLabels": {"svc": "web"}}, "labels of the Service"
    (job,) = [each for each in _config(FULL)["scrape_configs"] if "application" in each["job_name"]]
    assert (job["metrics_path"], job["enable_http2"]) == ("/metrics", False)


@pytest.mark.parametrize("broken", [{"port": 0}, {"port": 65536}, {"labels": {}}, {"path": "metrics"}])
def test_an_application_that_selects_everything_is_refused(broken: Mapping[str, Any]) -> None:
    """No labels would scrape every pod of the namespace at that port."""
    with pytest.raises(InputError):
        replace(WEB, **broken)


@needs_upstream
@pytest.mark.parametrize("unknown", [{"service_port": ""}, {"service_labels": None}, {"service_labels": {}}])
def test_an_application_without_a_service_to_select(unknown: Mapping[str, Any]) -> None:
    """A port without a name, or a Service without labels: a PodMonitor finds the pods by their own labels."""
    options = replace(FULL, applications=(replace(WEB, **unknown),))
    assert not of_kind("operator", "ServiceMonitor", options)
    monitor = next(
        m for m in of_kind("operator", "PodMonitor", options) if m["metadata"]["name"].endswith("shop-web")
    )
    assert_valid(monitor)
    assert monitor["spec"]["selector"] == {"matchLabels": {"app": "web"}}
    assert monitor["spec"]["scrapeClass"] == "istio-mtls"
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("http-envoy-prom", "/metrics")
    replaced = [r["replacement"] for r in endpoint["relabelings"] if r.get("targetLabel") == "__address__"]
    assert replaced == ["[$1]:9080", "$1:9080"]


def test_the_addons_container_is_locked_down() -> None:
    """No root, no capabilities, no writable root: the certificate files are readable for any user."""
    (container,) = template("addon")["spec"]["containers"]
    security = container["securityContext"]
    assert security["runAsNonRoot"] and security["readOnlyRootFilesystem"]
    assert security["capabilities"] == {"drop": ["ALL"]} and not security["allowPrivilegeEscalation"]
    assert "fsGroup" not in template("addon")["spec"].get("securityContext", {})


def test_the_addon_serves_what_it_mounts() -> None:
    """The ConfigMap's keys are the files that the arguments and rule_files name."""
    (config_map,) = of_kind("addon", "ConfigMap")
    assert set(config_map["data"]) == {"prometheus.yml", "rules.yml"}
    (container,) = template("addon")["spec"]["containers"]
    assert "--config.file=/etc/prometheus/prometheus.yml" in container["args"]
    assert _config(OPTIONS)["rule_files"] == ["/etc/prometheus/rules.yml"]
    (without,) = of_kind("addon", "ConfigMap", replace(OPTIONS, rules=None))
    assert set(without["data"]) == {"prometheus.yml"}
    assert "rule_files" not in yaml.safe_load(without["data"]["prometheus.yml"])


def test_identity_comes_from_the_service_account() -> None:
    """What goes onto allow lists is what the certificate will say."""
    assert FULL.spiffe_id("mesh.example") == "spiffe://mesh.example/ns/monitoring/sa/scraper"
    (account,) = of_kind("addon", "ServiceAccount", FULL)
    assert (account["metadata"]["namespace"], account["metadata"]["name"]) == ("monitoring", "scraper")


def test_the_network_policy_admits_its_own_namespace_only() -> None:
    """Prometheus' API hands out all that was scraped, without asking who wants it."""
    (policy,) = of_kind("addon", "NetworkPolicy", FULL)
    assert policy["spec"]["ingress"] == [
        {"from": [{"podSelector": {}}], "ports": [{"port": 9090, "protocol": "TCP"}]}
    ]
    assert not of_kind("addon", "NetworkPolicy")


def _config(options: PrometheusOptions) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(
        of_kind("addon", "ConfigMap", options)[0]["data"]["prometheus.yml"]
    )
    return found


def _place(obj: Mapping[str, Any]) -> tuple[str, str | None, str]:
    return obj["kind"], obj["metadata"].get("namespace"), obj["metadata"]["name"]


def _spoil(data: Any) -> None:
    """Empty every mapping and list, from the inside out."""
    values = list(data.values()) if isinstance(data, dict) else list(data)
    for each in values:
        if isinstance(each, dict | list):
            _spoil(each)
    if isinstance(data, dict | list):
        data.clear()
