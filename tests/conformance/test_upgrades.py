"""An upgrade from an Istio without secure ports to one that has them, under scraping."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from conformance import shop
from conformance.cluster.images import NEWER, OLDER
from conformance.cluster.istio import Installer
from conformance.kube import Kube
from conformance.migration import Migration
from conformance.prober import plain, secure

REVISION, NEXT = "stable", "next"
Row = Callable[..., None]


def options(mode: str) -> tuple[str, ...]:
    """Return the options of a plan for the shop."""
    return ("--mode", mode, "-n", shop.NAMESPACE)


@pytest.mark.whole
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("way", ["in place", "by a second revision"])
def test_upgrade_moves_from_legacy_to_native_ports(
    kube: Kube, installer: Installer, meshscrape: Path, tmp_path: Path, row: Row, way: str
) -> None:
    """Legacy mode on 1.30, upgrade, `--mode auto` moves to the native ports: every target stays up."""
    revisions = [REVISION] if way == "in place" else [REVISION, NEXT]
    installer.istiod(tag=OLDER, revision=REVISION)
    try:
        with shop.shop(kube, strict=False, revision=REVISION), shop.addon(kube, secure=False) as prometheus:
            tags = {_proxy_tag(pod) for pod in kube.pods(shop.NAMESPACE, "app=httpbin")}
            assert tags == {OLDER}
            prometheus.wait_for_up(set(shop.addresses(kube).values()))
            legacy = Migration(kube, meshscrape, tmp_path, options("auto"))

            def look(phase: str) -> None:
                prometheus.wait_for_up(set(shop.addresses(kube).values()))
                assert prometheus.down_samples(set(shop.addresses(kube).values()), 30) == 0, phase

            legacy.migrate((shop.NAMESPACE, "istio-system"), look)
            assert legacy.plan().returncode == 0
            assert all(
                t["scrapeUrl"].startswith("https://") and ":15091/" in t["scrapeUrl"]
                for t in prometheus.of(set(shop.addresses(kube).values()))
            )
            installer.istiod(tag=NEWER, revision=revisions[-1])
            if way != "in place":
                kube("label", "namespace", shop.NAMESPACE, f"istio.io/rev={NEXT}", "--overwrite")
            kube("-n", shop.NAMESPACE, "rollout", "restart", "deployment")
            kube.rollout(shop.NAMESPACE)
            assert {_proxy_tag(pod) for pod in kube.pods(shop.NAMESPACE, "app=httpbin")} == {NEWER}
            look("upgrade")
            native = Migration(kube, meshscrape, tmp_path, options("auto"))
            native.migrate((shop.NAMESPACE, "istio-system"), look)
            assert native.plan().returncode == 0
            urls = [t["scrapeUrl"] for t in prometheus.of(set(shop.addresses(kube).values()))]
            assert all(":15092/" in url for url in urls), urls
            row(
                f"upgrade 1.30 to 1.31 {way}: legacy mode, upgrade, native mode",
                f"{len(urls)} targets up after every phase, no scrape of a running pod lost",
                Prometheus=prometheus.version(),
            )
    finally:
        for revision in revisions:
            selector = f"istio.io/rev={revision}"
            kube("delete", "deployment,service,configmap,pdb", "-n", "istio-system", "-l", selector)
            kube("delete", "mutatingwebhookconfiguration,validatingwebhookconfiguration", "-l", selector)


@pytest.mark.whole
@pytest.mark.timeout(1200)
def test_native_ports_are_refused_before_they_exist(
    kube: Kube, installer: Installer, meshscrape: Path, tmp_path: Path, row: Row
) -> None:
    """On 1.30 a proxy with the variables opens no port; `--mode native` refuses, `--mode bootstrap` works."""
    installer.istiod(tag=OLDER, revision=REVISION)
    try:
        with shop.shop(kube, strict=True, revision=REVISION), shop.probers(kube) as scraper:
            identity = "spiffe:spiffe://cluster.local/ns/outside/sa/stranger"
            more = ("--prometheus", "none", "--scraper", identity)
            refused = Migration(kube, meshscrape, tmp_path, (*options("native"), *more)).plan()
            assert refused.returncode == 0 and "refused" in refused.stdout
            bootstrap = Migration(kube, meshscrape, tmp_path, (*options("bootstrap"), *more))
            bootstrap.migrate((shop.NAMESPACE,), lambda phase: None)
            for name, address in shop.addresses(kube).items():
                answers = [secure(address, 15092), plain(address, 15020), plain(address, 15090)]
                assert scraper.outcomes(*answers) == [200, 403, "refused"], name
            assert bootstrap.plan().returncode == 0
            row(
                "Istio 1.30: native mode refused, bootstrap mode",
                "allow list works on proxies without secure ports",
            )
    finally:
        kube("delete", "deployment,service,configmap,pdb", "-n", "istio-system", "-l", "istio.io/rev=stable")
        kube(
            "delete",
            "mutatingwebhookconfiguration,validatingwebhookconfiguration",
            "-l",
            "istio.io/rev=stable",
        )


def _proxy_tag(pod: dict[str, object]) -> str:
    spec: dict[str, list[dict[str, str]]] = pod["spec"]  # type: ignore[assignment]
    containers = [*spec.get("initContainers", []), *spec["containers"]]
    (image,) = [c["image"] for c in containers if c["name"] == "istio-proxy"]
    return image.rpartition(":")[2]
