"""An upgrade from an Istio without secure ports to one that has them, under scraping."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from conformance import shop
from conformance.cluster.images import NEWER, OLDER
from conformance.cluster.istio import Installer
from conformance.kube import Kube
from conformance.migration import Migration
from conformance.prober import plain, secure
from conformance.watch import Watch

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
    with (
        installer.revision(REVISION, tag=OLDER),
        shop.shop(kube, strict=False, revision=REVISION),
        shop.addon(kube, secure=False) as prometheus,
        contextlib.ExitStack() as later,
    ):
        assert _proxy_tags(kube) == {OLDER}
        prometheus.wait_for_up(set(shop.addresses(kube).values()))
        watch = Watch(kube, prometheus)

        def migrate(port: int) -> None:
            migration = Migration(kube, meshscrape, tmp_path, options("auto"))
            migration.migrate((shop.NAMESPACE, "istio-system"), watch.look)
            last = migration.plan()
            assert last.returncode == 0, last.stdout
            addresses = set(shop.addresses(kube).values())
            wanted = {f"https://{address}:{port}/stats/prometheus" for address in addresses}
            assert {target["scrapeUrl"] for target in prometheus.of(addresses)} == wanted

        migrate(15091)
        if way == "in place":
            installer.istiod(tag=NEWER, revision=REVISION)
        else:
            later.enter_context(installer.revision(NEXT))
            kube("label", "namespace", shop.NAMESPACE, f"istio.io/rev={NEXT}", "--overwrite")
        kube("-n", shop.NAMESPACE, "rollout", "restart", "deployment")
        kube.rollout(shop.NAMESPACE)
        assert _proxy_tags(kube) == {NEWER}
        watch.look("upgrade")
        migrate(15092)
        row(
            f"upgrade from 1.30 to 1.31 {way}: legacy mode, upgrade, native mode",
            f"every target up after each phase, {watch.lost()}planned again: nothing to do",
            Prometheus=prometheus.version(),
        )


@pytest.mark.whole
@pytest.mark.timeout(1200)
def test_native_ports_are_refused_before_they_exist(
    kube: Kube, installer: Installer, meshscrape: Path, tmp_path: Path, row: Row
) -> None:
    """On 1.30 `--mode native` is refused, `--mode bootstrap` works."""
    with (
        installer.revision(REVISION, tag=OLDER),
        shop.shop(kube, strict=True, revision=REVISION),
        shop.probers(kube) as scraper,
    ):
        identity = f"spiffe:spiffe://cluster.local/ns/{scraper.namespace}/sa/{scraper.name}"
        more = ("--prometheus", "none", "--scraper", identity)
        refused = Migration(kube, meshscrape, tmp_path, (*options("native"), *more, "-o", "json")).plan()
        assert refused.returncode == 1, refused.stderr
        notes = json.loads(refused.stdout)["notes"]
        assert {note["code"] for note in notes if note["refused"]} == {"native-too-old"}
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


def _proxy_tags(kube: Kube) -> set[str]:
    """Return the tags of the proxies of httpbin's pods."""
    found = set()
    for pod in kube.pods(shop.NAMESPACE, "app=httpbin"):
        containers = [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
        found |= {c["image"].rpartition(":")[2] for c in containers if c["name"] == "istio-proxy"}
    return found
