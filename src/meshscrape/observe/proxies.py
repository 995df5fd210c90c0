"""Read a pod as it runs, from its proxy's environment, annotations and images."""

from __future__ import annotations

from collections.abc import Mapping

from meshscrape.istio import names
from meshscrape.istio.environment import is_true
from meshscrape.istio.versions import UNKNOWN
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest
from meshscrape.kube.pod_targets import secure_ports
from meshscrape.kube.views.proxy import (
    annotation_metadata,
    is_injected,
    proxy_of,
    running_version,
    written_metadata,
)
from meshscrape.observe.model import RunningPod

_SHOWN = (
    names.SECURE_PORT, names.SECURE_ENVOY_PORT, names.BOOTSTRAP_OVERRIDE, names.BOOTSTRAP_CHECKSUM,
)  # fmt: skip


def running_pod(pod: Manifest) -> RunningPod:
    """Return a pod as it runs: its own environment and annotations, and the image that was started."""
    annotations = objects.annotations(pod.data)
    proxy = proxy_of(pod.data)
    env = proxy.env if proxy else {}
    version = running_version(pod.data, proxy) if proxy else UNKNOWN
    ports = secure_ports(pod.data, env)
    closed = is_true(env.get(names.METRICS_LOCALHOST_ACCESS_ONLY)) and _stats_closed(env, annotations)
    return RunningPod(
        ref=pod.ref,
        phase=str(objects.dig(pod.data, "status", "phase", default="")),
        version=version,
        secure_port=ports["merged"].opened,
        secure_envoy_port=ports["envoy"].opened,
        hardened=proxy is not None and closed and version.at_least("1.22") is not False,
        native_sidecar=proxy.native if proxy else None,
        injected=is_injected(annotations) or (proxy is not None and proxy.complete),
        annotations={key: str(annotations[key]) for key in _SHOWN if key in annotations},
        ip=str(objects.dig(pod.data, "status", "podIP", default="")),
    )


def _stats_closed(env: Mapping[str, str], annotations: Mapping[str, str]) -> bool:
    written = annotation_metadata(annotations).get(names.METRICS_LOCALHOST_ACCESS_ONLY)
    if written is None:
        written = written_metadata(env).get(names.METRICS_LOCALHOST_ACCESS_ONLY)
    # Istio's bootstrap accepts only this spelling.
    return written == "true"
