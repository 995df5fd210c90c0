"""A pod as it runs: what its proxy's environment, annotations and images say."""

from __future__ import annotations

from collections.abc import Mapping

from meshscrape.istio import names
from meshscrape.istio.environment import is_true
from meshscrape.istio.ports import read_port
from meshscrape.istio.versions import UNKNOWN, IstioVersion, image_version
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest
from meshscrape.kube.views.proxy import Proxy, annotation_metadata, is_injected, proxy_of, written_metadata
from meshscrape.observe.model import RunningPod


def running_pod(pod: Manifest) -> RunningPod:
    """Return a pod as it runs: its own environment and annotations, and the image that was started."""
    annotations = objects.annotations(pod.data)
    proxy = proxy_of(pod.data)
    env = proxy.env if proxy else {}
    version = _running_version(pod, proxy)
    closed = is_true(env.get(names.METRICS_LOCALHOST_ACCESS_ONLY)) and _stats_closed(env, annotations)
    return RunningPod(
        ref=pod.ref,
        phase=str(objects.dig(pod.data, "status", "phase", default="")),
        version=version,
        secure_port=read_port(env.get(names.ENVOY_SECURE_MERGED_METRICS_PORT)),
        secure_envoy_port=read_port(env.get(names.ENVOY_SECURE_METRICS_PORT)),
        hardened=proxy is not None and closed and version.at_least("1.22") is not False,
        native_sidecar=proxy.native if proxy else None,
        injected=is_injected(annotations) or (proxy is not None and proxy.complete),
        annotations={
            key: str(annotations[key])
            for key in (names.SECURE_PORT, names.SECURE_ENVOY_PORT, names.BOOTSTRAP_OVERRIDE)
            if key in annotations
        },
        ip=str(objects.dig(pod.data, "status", "podIP", default="")),
    )


def _stats_closed(env: Mapping[str, str], annotations: Mapping[str, str]) -> bool:
    written = annotation_metadata(annotations).get(names.METRICS_LOCALHOST_ACCESS_ONLY)
    if written is None:
        written = written_metadata(env).get(names.METRICS_LOCALHOST_ACCESS_ONLY)
    # Istio's bootstrap compares with this one spelling.
    return written == "true"


def _running_version(pod: Manifest, proxy: Proxy | None) -> IstioVersion:
    if proxy is None:
        return UNKNOWN
    for place in ("initContainerStatuses", "containerStatuses"):
        for status in objects.as_list(objects.dig(pod.data, "status", place)):
            if objects.dig(status, "name") == names.PROXY_CONTAINER:
                version = image_version(str(objects.dig(status, "image", default="")))
                if version.known:
                    return version
    return image_version(proxy.image)
