"""Which of Istio's places for defaults reach a proxy: read from what its webhook makes of a pod."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from conformance import samples, shop
from conformance.cluster.istio import Installer
from conformance.kube import Kube, Object, until
from conformance.live import Live
from conformance.migration import Migration
from conformance.watch import Watch
from meshscrape.observe.injection_template import InjectionTemplate, chart_values

Row = Callable[..., None]
YES = ("--yes", "--yes-interruption")
SPACE = "places"
CHECKSUM = "meshscrape.io/bootstrap-checksum"
ROOT = "istio-system"


def injected(
    kube: Kube, annotations: Mapping[str, str] | None = None, labels: Mapping[str, str] | None = None
) -> Object:
    """Return what the webhook makes of a pod, by a server-side dry run: nothing starts."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "probe", "namespace": SPACE, "labels": {"app": "probe", **(labels or {})},
            "annotations": dict(annotations or {}),
        },
        "spec": {"containers": [{"name": "app", "image": "example/app:1"}]},
    }  # fmt: skip
    made: Object = json.loads(
        kube("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(pod))
    )
    return made


def variables(pod: Object) -> dict[str, str]:
    """Return the environment of the process pilot-agent in a pod or in a pod template."""
    spec = pod["spec"]
    (proxy,) = (
        each
        for each in (*spec.get("initContainers", []), *spec["containers"])
        if each["name"] == "istio-proxy"
    )
    return {each["name"]: each.get("value", "") for each in proxy["env"]}


def proxy_config(name: str, namespace: str, selector: dict[str, str] | None = None) -> Object:
    """Return a ProxyConfig that sets one variable, called like the object."""
    spec: Object = {"environmentVariables": {name.upper().replace("-", "_"): "set"}}
    if selector:
        spec["selector"] = {"matchLabels": selector}
    return {
        "apiVersion": "networking.istio.io/v1beta1",
        "kind": "ProxyConfig",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


@contextlib.contextmanager
def applied(kube: Kube, *things: Object) -> Iterator[None]:
    """Provide objects, and delete them at the end."""
    kube.apply(list(things))
    try:
        yield
    finally:
        kube("delete", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": things}))


@contextlib.contextmanager
def charted(installer: Installer, values: Object, mesh: Object | None = None) -> Iterator[None]:
    """Provide Istio with values of its chart, and bring back the usual ones at the end."""
    installer.istiod(mesh={"values": values, **({"meshConfig": mesh} if mesh else {})})
    try:
        yield
    finally:
        installer.istiod()


@pytest.mark.whole
@pytest.mark.timeout(1200)
def test_variables_reach_the_proxy_from_each_place(kube: Kube, installer: Installer, row: Row) -> None:
    """A server-side dry run tells what a pod gets; a Gateway's Deployment tells what istiod gave it."""
    gateway = samples.gateway()[0]
    name = f"{gateway['metadata']['name']}-istio"
    template = InjectionTemplate(15092, 0, {SPACE: "0123456789abcdef"}).text()
    hook = yaml.safe_load(chart_values(InjectionTemplate(15092, 0, {SPACE: "0123456789abcdef"}), ()))
    assert hook["sidecarInjectorWebhook"]["templates"]["meshscrape"].split() == template.split()
    chart = {**hook, "global": {"proxy": {"excludeInboundPorts": "15092"}}}
    mesh = {"defaultConfig": {"proxyMetadata": {"FROM_MESH": "set"}}}
    seen: dict[str, Any] = {}
    configs = [
        proxy_config("from-root", ROOT),
        proxy_config("from-namespace", SPACE),
        proxy_config("from-selector", SPACE, {"chosen": "yes"}),
    ]
    with kube.namespace(SPACE, **shop.INJECTED), charted(installer, chart, mesh):
        with applied(kube, *configs):
            until(lambda: "FROM_NAMESPACE" in variables(injected(kube)), "the namespace's ProxyConfig counts")
            until(lambda: "FROM_MESH" in variables(injected(kube)), "the mesh configuration counts")
            until(
                lambda: CHECKSUM in injected(kube)["metadata"]["annotations"],
                "the webhook uses the changed ConfigMap of the injector",
            )
            pod = injected(
                kube,
                {"proxy.istio.io/config": samples.proxy_metadata(FROM_ANNOTATION="set")},
                {"chosen": "yes"},
            )
            seen = {key: value for key, value in variables(pod).items() if key.startswith("FROM_")}
            other = {key for key in variables(injected(kube)) if key.startswith("FROM_")}
            kube.apply(gateway, "-n", SPACE)
            until(lambda: kube.has("-n", SPACE, "deployment", name), "istiod makes the gateway")
            deployment = kube.get("-n", SPACE, "deployment", name)
            managed = {key for key in variables(deployment["spec"]["template"]) if key.startswith("FROM_")}
            gate = injected(kube, {"inject.istio.io/templates": "gateway"})
            by_template = {key for key in variables(gate) if key.startswith("FROM_")}
            excluded = json.dumps(injected(kube)["spec"].get("initContainers", []))
        kube("-n", SPACE, "delete", "gateways.gateway.networking.k8s.io", "--all")
    wide = {"FROM_MESH", "FROM_ROOT", "FROM_NAMESPACE"}
    assert set(seen) == {*wide, "FROM_SELECTOR", "FROM_ANNOTATION"}, seen
    assert other == managed == by_template == wide
    assert "15092" in excluded, excluded
    assert CHECKSUM not in gate["metadata"]["annotations"]
    row(
        "variables of a proxy, by place",
        "mesh configuration, ProxyConfig (root, namespace): sidecar, injected gateway, Gateway API; "
        "ProxyConfig with a selector and annotation: sidecar; excludeInboundPorts of the chart: istio-init; "
        "the injection template: sidecars only",
    )


@pytest.mark.whole
@pytest.mark.timeout(1500)
def test_an_injection_template_opens_ports_without_a_condition(
    kube: Kube, installer: Installer, meshscrape: Path, tmp_path: Path, row: Row
) -> None:
    """Bootstrap mode for a namespace: no template changes, and a pod starts without the ConfigMap too."""
    options = ("--mode", "bootstrap", "--scope", "namespace", "-n", shop.NAMESPACE)
    with shop.shop(kube, strict=False), shop.found(kube, "existing") as prometheus:
        assert prometheus is not None
        migration = Migration(kube, meshscrape, tmp_path, options)
        watch = Watch(kube, prometheus)

        def restart() -> None:
            names = kube("-n", shop.NAMESPACE, "get", "deployment", "-o", "name").split()
            kube("-n", shop.NAMESPACE, "rollout", "restart", *names)
            migration.settle((shop.NAMESPACE,))

        first = migration.migrate((shop.NAMESPACE, ROOT), watch.look)
        values = yaml.safe_load((tmp_path / "out/istio-values.yaml").read_text())
        with charted(installer, values):
            until(lambda: _has_template(kube), "the webhook uses the template")
            override = kube.get("-n", shop.NAMESPACE, "configmap", "meshscrape-bootstrap")
            kube("-n", shop.NAMESPACE, "delete", "configmap", "meshscrape-bootstrap")
            kube("-n", shop.NAMESPACE, "rollout", "restart", "deployment/productpage")
            kube.rollout(shop.NAMESPACE, "deployment/productpage")
            log = kube("-n", shop.NAMESPACE, "logs", "deployment/productpage", "-c", "istio-proxy")
            assert "Failed to read bootstrap override" in log, log
            for key in ("resourceVersion", "uid", "creationTimestamp", "managedFields"):
                override["metadata"].pop(key, None)
            kube.apply(override)
            restart()
            second = migration.migrate((shop.NAMESPACE, ROOT), lambda _: None)
            restart()
            watch.look("template")
            last = migration.plan()
            assert last.returncode == 0, last.stdout
            addresses = set(shop.addresses(kube).values())
            urls = {target["scrapeUrl"] for target in prometheus.of(addresses)}
            assert urls == {f"https://{address}:15092/stats/prometheus" for address in addresses}
            row(
                "plan --mode bootstrap --scope namespace",
                f"{len(first)} and {len(second)} phases, between them the values of the chart: {len(urls)} "
                "targets up over HTTPS; without the ConfigMap a pod starts, and its agent logs it",
                Prometheus=prometheus.version(),
            )


@pytest.mark.whole
@pytest.mark.timeout(1500)
def test_remove_takes_an_injection_template_back(
    kube: Kube, installer: Installer, meshscrape: Path, tmp_path: Path, row: Row
) -> None:
    """It waits until Istio's chart has no template for the namespace and no pod runs with it."""
    options = ("--mode", "bootstrap", "--scope", "namespace", "-n", shop.NAMESPACE)
    live = Live(meshscrape, kube.kubeconfig)
    back = ("remove", "-n", shop.NAMESPACE, *YES, "--yes-plaintext")
    with shop.shop(kube, strict=False), shop.found(kube, "existing") as prometheus:
        assert prometheus is not None
        prometheus.wait_for_up(set(shop.addresses(kube).values()))
        migration = Migration(kube, meshscrape, tmp_path, options)
        # The ConfigMaps, and nothing that needs the template.
        first = live.run("apply", *options, *YES)
        assert first.returncode == 1, (first.stdout, first.stderr)
        values = yaml.safe_load((migration.render() / "istio-values.yaml").read_text())
        with charted(installer, values):
            until(lambda: _has_template(kube), "the webhook uses the template")
            _restart(kube)
            second = live.run("apply", *options, *YES)
            assert second.returncode == 0, (second.stdout, second.stderr)
            _restart(kube)
            secured = prometheus.wait_for_up(set(shop.addresses(kube).values()))
            assert all(target["scrapeUrl"].startswith("https://") for target in secured)
            held = live.run(*back)
            assert (held.returncode, "of Istio's chart still gives" in held.stdout) == (1, True), held.stdout
        # The webhook reads the chart's usual ConfigMap again, a while after the upgrade.
        until(lambda: not _has_template(kube), "the webhook uses the usual templates")
        _restart(kube)
        done = live.run(*back)
        assert done.returncode == 0, (done.stdout, done.stderr)
        targets = prometheus.wait_for_up(set(shop.addresses(kube).values()))
        assert all(target["scrapeUrl"].startswith("http://") for target in targets)
        assert not kube.has("-n", shop.NAMESPACE, "configmap", "meshscrape-bootstrap")
        row(
            "remove of bootstrap mode by an injection template",
            f"held back while Istio's chart has the template; then {len(targets)} targets up over HTTP and "
            "the ConfigMap is gone",
            Prometheus=prometheus.version(),
        )


def _restart(kube: Kube) -> None:
    """Restart every Deployment of the shop, and wait until it runs."""
    names = kube("-n", shop.NAMESPACE, "get", "deployment", "-o", "name").split()
    kube("-n", shop.NAMESPACE, "rollout", "restart", *names)
    kube.rollout(shop.NAMESPACE, *names)


def _has_template(kube: Kube) -> bool:
    """Return whether a pod of the shop would get the template's annotation."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe", "namespace": shop.NAMESPACE},
        "spec": {"containers": [{"name": "app", "image": "example/app:1"}]},
    }
    made = kube("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(pod))
    return CHECKSUM in json.loads(made)["metadata"].get("annotations", {})
