"""The real programs: which there are, where their sources lie, and how they are built once into a cache.

Each is a `tool` of a small Go module below `tools/`, or that module's own main package; go.mod and go.sum
are the pins. A program lies in the cache under a key of the module's files and of how it is built, so a
changed pin never meets an old program.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TOOLS = Path(__file__).parent.parent / "tools"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meshscrape/conformance"


@dataclass(frozen=True)
class Program:
    """One program: the module below `tools/` that pins it, its package, and how it is built."""

    name: str
    module: str
    package: str
    tags: str = ""
    stamp: str = ""  # a linker variable that carries the version
    minutes: int = 1  # on two idle cores, with an empty build cache
    counts: str = ""  # the module whose version is the program's, if not the package's own

    @property
    def source(self) -> str:
        """The Go module whose version is the program's."""
        if self.counts:
            return self.counts
        candidates = [name for name in requirements(self.module) if f"{self.package}/".startswith(f"{name}/")]
        return max(candidates, key=len)

    @property
    def version(self) -> str:
        """The pinned version of that module."""
        return requirements(self.module)[self.source]


ISTIO = "vtprotobuf,disable_pgv"  # as Istio's own Makefile
AGENT = "agent,disable_pgv"
KUBERNETES = "k8s.io/component-base/version.gitVersion"
# Prometheus without the service discoveries that nothing here uses, by its own build tags: a third of the
# time.
DISCOVERY = "remove_all_sd,enable_kubernetes_sd"
OPERATOR = "github.com/prometheus-operator/prometheus-operator/cmd"

PROGRAMS = (
    Program("etcd", "etcd", "go.etcd.io/etcd/server/v3"),
    Program(
        "kube-apiserver", "kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver", stamp=KUBERNETES, minutes=7
    ),
    Program(
        "kube-controller-manager",
        "kubernetes",
        "k8s.io/kubernetes/cmd/kube-controller-manager",
        stamp=KUBERNETES,
        minutes=2,
    ),
    Program("kubectl", "kubernetes", "k8s.io/kubernetes/cmd/kubectl", stamp=KUBERNETES),
    Program("pilot-agent", "istio", "istio.io/istio/pilot/cmd/pilot-agent", AGENT),
    Program("pilot-discovery", "istio", "istio.io/istio/pilot/cmd/pilot-discovery", ISTIO, minutes=4),
    Program("istioctl", "istio", "istio.io/istio/istioctl/cmd/istioctl", ISTIO, minutes=2),
    Program(
        "prometheus", "prometheus", "github.com/prometheus/prometheus/cmd/prometheus", DISCOVERY, minutes=4
    ),
    Program("promtool", "prometheus", "github.com/prometheus/prometheus/cmd/promtool", DISCOVERY),
    Program("prometheus-operator", "operator", f"{OPERATOR}/operator", minutes=3),
    Program("prometheus-config-reloader", "operator", f"{OPERATOR}/prometheus-config-reloader"),
    Program("helm", "helm", "helm.sh/helm/v4/cmd/helm"),
)
RECEIVER = "github.com/open-telemetry/opentelemetry-collector-contrib/receiver/prometheusreceiver"
WHOLE = (  # only the whole tier needs these
    Program("pilot-agent-1.30", "istio-1.30", "istio.io/istio/pilot/cmd/pilot-agent", AGENT, minutes=2),
    Program(
        "pilot-discovery-1.30", "istio-1.30", "istio.io/istio/pilot/cmd/pilot-discovery", ISTIO, minutes=4
    ),
    Program("istioctl-1.30", "istio-1.30", "istio.io/istio/istioctl/cmd/istioctl", ISTIO, minutes=2),
    Program("collector", "collector", ".", DISCOVERY, minutes=6, counts=RECEIVER),
)
BY_NAME = {program.name: program for program in (*PROGRAMS, *WHOLE)}


def program(name: str) -> Path:
    """Return where a built program lies in the cache."""
    return CACHE / key(BY_NAME[name]) / BY_NAME[name].name


def built(name: str) -> Path:
    """Return a program, built first if the cache lacks it."""
    build((BY_NAME[name],))
    return program(name)


@cache
def requirements(module: str) -> dict[str, str]:
    """Return what a module below `tools/` requires: module path to version, replacements applied."""
    text = (TOOLS / module / "go.mod").read_text()
    required = dict(re.findall(r"^\s*(?:require\s+)?([\w.-]+(?:/[\w.~-]+)*) (v\S+)", text, re.MULTILINE))
    replaced = dict(re.findall(r"^\s*(\S+) => \1 (v\S+)", text, re.MULTILINE))
    return required | replaced


@cache
def key(what: Program) -> str:
    """Return the cache key: the pins, the Go version's own choices excluded, and how the program is built."""
    digest = hashlib.sha256()
    for file in sorted((TOOLS / what.module).glob("*")):  # go.mod, go.sum, and a main package's own source
        digest.update(file.read_bytes())
    digest.update(f"{what.package} {what.tags} {what.stamp}".encode())
    return f"{what.name}-{digest.hexdigest()[:16]}"


def build(wanted: tuple[Program, ...] = PROGRAMS) -> None:
    """Build what the cache lacks, one program after the other, with a line of progress for each."""
    lacking = [what for what in wanted if not program(what.name).exists()]
    for number, what in enumerate(lacking, 1):
        began = time.monotonic()
        print(
            f"conformance: building {what.name} {what.version} ({number} of {len(lacking)},"
            f" about {what.minutes} min on two idle cores)",
            file=sys.stderr,
            flush=True,
        )
        _build(what)
        print(
            f"conformance: built {what.name} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True
        )


def _build(what: Program) -> None:
    target = program(what.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    linked = "-s -w" + (f" -X {what.stamp}={what.version}" if what.stamp else "")
    fresh = target.with_suffix(f".{os.getpid()}")
    done = subprocess.run(
        ["go", "build", "-tags", what.tags, "-ldflags", linked, "-o", str(fresh), what.package],
        cwd=TOOLS / what.module,
        env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false -mod=readonly"},
        check=False,
    )
    if done.returncode:
        shutil.rmtree(target.parent, ignore_errors=True)
        raise RuntimeError(f"go build of {what.package} failed; see its lines above")
    fresh.rename(target)


@cache
def source(module: str, path: str) -> Path:
    """Return the directory of a Go module's source, at the version that a module below `tools/` pins."""
    where = TOOLS / module
    subprocess.run(["go", "mod", "download", path], cwd=where, check=True, stdout=subprocess.DEVNULL)
    found = subprocess.run(
        ["go", "list", "-m", "-f", "{{.Dir}}", path], cwd=where, check=True, capture_output=True, text=True
    )
    return Path(found.stdout.strip())
