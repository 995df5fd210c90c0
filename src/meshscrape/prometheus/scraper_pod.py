"""The settings of a scraper's pod to get a workload certificate from its sidecar (OUTPUT_CERTS).

The sidecar only provides the certificate and intercepts no traffic. Istio's agent writes the three files with
mode 0644 as user 1337. So the scraper may run as any user, and the directory must be writable for 1337, as an
emptyDir is. The emptyDir is in memory, because one of the files is a private key.
"""

from __future__ import annotations

import json
from typing import Any

from meshscrape.istio import names
from meshscrape.kube.yaml_text import dump

# Not `istio-certs`: Istio has a volume of that name when `global.mountMtlsCerts` is set.
VOLUME = "scraper-certs"
CERTIFICATES = "/etc/istio-output-certs"


def pod_labels(revision: str = "") -> dict[str, str]:
    """Return the labels that request the sidecar (webhooks ignore the annotation of the same name).

    Clients with sidecars (Grafana, Kiali) would use mutual TLS to a pod with a sidecar, but this sidecar does
    not intercept inbound traffic. `tlsMode` prevents that. Istio's injection template keeps it (istio/istio
    `files/injection-template.yaml`, since 1.14 at least). `revision` is a revision or tag of the control
    plane, for namespaces without an injection label.
    """
    labels = {names.INJECT: "true", names.TLS_MODE: "disabled"}
    return labels | {names.REVISION: revision} if revision else labels


def pod_annotations(harden: bool = False) -> dict[str, str]:
    """Return annotations that make the sidecar write the certificate and intercept nothing.

    Without interception, Prometheus itself presents the certificate, and can reach targets outside the mesh.
    `harden` closes the plaintext metrics of the sidecar.
    """
    return {
        names.PROXY_CONFIG_ANNOTATION: dump(proxy_config(harden)),
        names.USER_VOLUME_MOUNT: json.dumps(user_volume_mount()),
        names.INCLUDE_INBOUND: "",
        names.INCLUDE_OUTBOUND: "",
    }


def unscraped() -> dict[str, str]:
    """Return the annotation that stops the injector from announcing a plaintext port of the pod."""
    return {names.PROMETHEUS_SCRAPE: "false"}


def proxy_config(harden: bool = False, directory: str = CERTIFICATES) -> dict[str, Any]:
    """Return the content of the annotation `proxy.istio.io/config`.

    Prometheus makes no scrape pool if a certificate file of the job is missing. The targets are then absent,
    not down, until the next change in discovery. So Prometheus must start after the proxy has the
    certificate; native sidecars always start first.
    """
    metadata = {names.OUTPUT_CERTS: directory}
    if harden:
        metadata[names.METRICS_LOCALHOST_ACCESS_ONLY] = "true"
    return {"holdApplicationUntilProxyStarts": True, "proxyMetadata": metadata}


def user_volume_mount(name: str = VOLUME, directory: str = CERTIFICATES) -> dict[str, Any]:
    """Return `sidecar.istio.io/userVolumeMount` as a map by name, as Istio's template expects it."""
    return {name: {"mountPath": directory}}


def volume(name: str = VOLUME) -> dict[str, Any]:
    """Return the pod's volume for the certificate files."""
    return {"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}


def volume_mount(name: str = VOLUME, directory: str = CERTIFICATES) -> dict[str, Any]:
    """Return the scraper's own mount of that volume."""
    return {"name": name, "mountPath": directory, "readOnly": True}
