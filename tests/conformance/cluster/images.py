"""Which local program stands for which image."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from conformance.cluster import programs
from conformance.cluster.api import Object
from meshscrape.local.binaries import find_prometheus

NEWER, OLDER = "1.31.0", "1.30.0"  # the tags that stand for the two pinned versions of Istio
PLAIN = ("prometheus", "prometheus-operator", "prometheus-config-reloader")  # one program, whatever the tag
PROMETHEUS_2 = "v2"  # the tag that stands for Debian's Prometheus 2, in the whole tier
COLLECTOR = "opentelemetry-collector-contrib"  # in the whole tier, with two components only
NOBODY = 65534
QUIET = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}


class NoImageError(Exception):
    """Nothing on this machine stands for an image."""


@dataclass(frozen=True)
class Image:
    """The program of an image, and the directories that lie over the machine's root."""

    command: tuple[str, ...]
    layers: tuple[Path, ...] = ()
    user: int | None = None  # None: what the pod says
    fixed: bool = False  # the container's own `command` is for a file that only the real image has
    arguments: bool = True  # the container's `args` are for our program too
    environment: Mapping[str, str] = field(default_factory=dict)
    shared: tuple[Path, ...] = ()  # directories of the machine that lie on other file systems than its root
    opened: tuple[Path, ...] = ()  # directories that every user may pass, in the container alone


class Images:
    """The images of one cluster, in a directory on its tmpfs."""

    def __init__(self, directory: Path, virtual_environment: Path) -> None:
        self.directory, self.python = directory, virtual_environment / "bin"
        needed = (virtual_environment, Path(sys.base_prefix))
        self.shared = tuple(path for path in needed if path.stat().st_dev != Path("/").stat().st_dev)
        # A Python in somebody's home is closed to the users that containers run as.
        parents = {parent for path in needed for parent in path.resolve().parents}
        self.opened = tuple(sorted(path for path in parents if not path.stat().st_mode & 0o001))

    def make(self, envoy: Path, whole: bool) -> None:
        """Copy the programs into the images' directories. A layer never changes while it is used."""
        self._proxy(NEWER, "istio", "pilot-agent", envoy)
        self._put("pilot", NEWER, programs.program("pilot-discovery"), "usr/local/bin/pilot-discovery")
        for name in PLAIN:
            self._put(name, "any", programs.program(name), f"usr/local/bin/{name}")
        if whole:
            debian = find_prometheus(os.environ)
            if debian is not None:
                self._put("prometheus", PROMETHEUS_2, debian.server, "usr/local/bin/prometheus")
            self._put(COLLECTOR, "any", programs.program("collector"), f"usr/local/bin/{COLLECTOR}")
            self._proxy(OLDER, "istio-1.30", "pilot-agent-1.30", envoy)
            self._put(
                "pilot", OLDER, programs.program("pilot-discovery-1.30"), "usr/local/bin/pilot-discovery"
            )

    def _proxy(self, tag: str, module: str, agent: str, envoy: Path) -> None:
        self._put("proxyv2", tag, envoy, "usr/local/bin/envoy")
        self._put("proxyv2", tag, programs.program(agent), "usr/local/bin/pilot-agent")
        source = programs.source(module, "istio.io/istio") / "tools/packaging/common/envoy_bootstrap.json"
        template = self._put("proxyv2", tag, source, "var/lib/istio/envoy/envoy_bootstrap_tmpl.json")
        template.write_text(normalizing(source.read_text()))

    def _put(self, image: str, tag: str, source: Path, target: str) -> Path:
        place = self.layer(image, tag) / target
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)
        place.chmod(0o755)
        return place

    def layer(self, image: str, tag: str) -> Path:
        """Return the directory of an image that lies over the machine's root."""
        return self.directory / f"{image}-{tag}"

    def find(self, container: Object) -> Image:
        """Return what stands for a container's image."""
        image = str(container.get("image", ""))
        name, _, tag = image.rpartition("/")[2].partition(":")
        if name in ("proxyv2", "pilot"):
            layer = self.layer(name, tag)
            if not layer.is_dir():
                raise NoImageError(
                    f"{image}: only the tags {NEWER} and {OLDER} (whole tier) stand for a version"
                )
            if name == "proxyv2":
                return Image(("/usr/local/bin/pilot-agent",), (layer,))
            return Image(("/usr/local/bin/pilot-discovery",), (layer,), user=1337)
        if name in (*PLAIN, COLLECTOR):
            layer = self.layer(name, PROMETHEUS_2 if (name, tag) == ("prometheus", PROMETHEUS_2) else "any")
            if not layer.is_dir():
                raise NoImageError(
                    f"{image}: Prometheus 2 is not installed (Debian: apt-get install prometheus)"
                )
            return Image((f"/usr/local/bin/{name}",), (layer,), user=NOBODY, fixed=True)
        if name == "vmagent" and (installed := shutil.which(name)):
            return Image((installed,), user=NOBODY, fixed=True)
        if name.endswith("httpbin"):
            return self._web("httpbin:app", container, 8080)
        if "productpage" in name:
            return self._web("prometheus_client:make_wsgi_app()", container, 9080)
        if name in ("python", "meshscrape"):
            # Probes name the program as the image's own path finds it.
            path = {"PATH": f"{self.python}:/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin"}
            command = (str(self.python / name),)
            return Image(command, environment=QUIET | path, shared=self.shared, opened=self.opened)
        if name == "pause":
            return Image(("sleep", "infinity"))
        raise NoImageError(f"{image}: no program on this machine stands for it")

    def _web(self, application: str, container: Object, default: int) -> Image:
        ports = [int(port["containerPort"]) for port in container.get("ports", [])] or [default]
        command = (
            str(self.python / "gunicorn"),
            f"--bind=0.0.0.0:{ports[0]}",
            "--threads=4",
            "--no-control-socket",
            application,
        )
        return Image(command, fixed=True, arguments=False, user=0, environment=QUIET, shared=self.shared)


def normalizing(template: str) -> str:
    """Return Istio's bootstrap template with paths normalized by default.

    Istio builds its own Envoy with `path_normalization_by_default=true`; stock Envoy has the same as a
    runtime key.
    """
    layer = '{"name": "build", "static_layer": {"http_connection_manager.normalize_path": 100}},'
    changed = template.replace('"layers": [', f'"layers": [{layer}', 1)
    if changed == template:
        raise ValueError("Istio's bootstrap template has no runtime layers any more: look where they went")
    return changed
