"""Istio's injection template that gives sidecars a bootstrap override: written by a plan, read by `observe`.

The annotation `bootstrapOverride` makes a ConfigMap a condition of every pod's start, because Istio mounts it
without `optional`. A template of our own mounts it with `optional`: a pod without the ConfigMap starts, and
the agent logs that it cannot read the override (`pkg/envoy/proxy.go`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from meshscrape.envoy.override import BOOTSTRAP_FILE, DIRECTORY
from meshscrape.istio import names
from meshscrape.kube.yaml_text import dump

# The template's name in Istio's chart. A pod that names its templates itself does not get the default ones.
TEMPLATE = "meshscrape"
# The ConfigMap with the bootstrap override of a namespace's proxies, and its volume in pods.
OVERRIDE_NAME = "meshscrape-bootstrap"
VOLUME = "meshscrape-bootstrap"
SIDECAR = "sidecar"

_CHECKSUMS = re.compile(r"\$checksums := dict((?: `[a-z0-9-]+` `[0-9a-f]+`)*) ")
_ENTRY = re.compile(r"`([a-z0-9-]+)` `([0-9a-f]+)`")
_ANNOUNCED = re.compile(r"\b(secure-port|secure-envoy-port)` \| default `([0-9]+)`")


@dataclass(frozen=True, slots=True)
class InjectionTemplate:
    """The settings of the template.

    `checksums`: for each namespace whose sidecars get the override, the checksum of its ConfigMap.
    `merged_port` and `envoy_port` (0: none) are announced to Prometheus.
    """

    merged_port: int
    envoy_port: int = 0
    checksums: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """Return the template for `sidecarInjectorWebhook.templates` of Istio's chart.

        It leaves out pods with a bootstrap override of their own, and proxies with Istio's own secure ports:
        Envoy does not start with two listeners on one port. `metadata: {}` changes nothing.
        """
        entries = "".join(f" `{name}` `{checksum}`" for name, checksum in sorted(self.checksums.items()))
        announced = [(names.SECURE_PORT, self.merged_port), (names.SECURE_ENVOY_PORT, self.envoy_port)]
        annotations = "".join(
            f"    {key}: {{{{ index $annotations `{key}` | default `{port}` | quote }}}}\n"
            for key, port in announced
            if port
        )
        return f"""\
{{{{- $checksums := dict{entries} }}}}
{{{{- $checksum := get $checksums .ObjectMeta.Namespace }}}}
{{{{- $variables := .ProxyConfig.ProxyMetadata }}}}
{{{{- $annotations := .ObjectMeta.Annotations }}}}
{{{{- $merged := index $variables `{names.ENVOY_SECURE_MERGED_METRICS_PORT}` | default `0` }}}}
{{{{- $envoy := index $variables `{names.ENVOY_SECURE_METRICS_PORT}` | default `0` }}}}
{{{{- $own := isset $annotations `{names.BOOTSTRAP_OVERRIDE}` }}}}
{{{{- $native := index $annotations `{names.NATIVE_SIDECAR}` | default (printf `%t` .NativeSidecars) }}}}
{{{{- if and $checksum (not $own) (eq $merged `0`) (eq $envoy `0`) }}}}
metadata:
  annotations:
    {names.BOOTSTRAP_CHECKSUM}: {{{{ $checksum | quote }}}}
{annotations}\
spec:
  {{{{- if ne $native `false` }}}}
  initContainers:
  {{{{- else }}}}
  containers:
  {{{{- end }}}}
  - name: {names.PROXY_CONTAINER}
    env:
    - name: {names.ISTIO_BOOTSTRAP_OVERRIDE}
      value: {DIRECTORY}/{BOOTSTRAP_FILE}
    volumeMounts:
    - name: {VOLUME}
      mountPath: {DIRECTORY}
      readOnly: true
  volumes:
  - name: {VOLUME}
    configMap:
      name: {OVERRIDE_NAME}
      optional: true
{{{{- else }}}}
metadata: {{}}
{{{{- end }}}}
"""


def read_template(text: str) -> InjectionTemplate | None:
    """Return the settings of a template that a plan wrote; None for any other text."""
    entries = _CHECKSUMS.search(text)
    if entries is None:
        return None
    ports = {key: int(port) for key, port in _ANNOUNCED.findall(text)}
    found = InjectionTemplate(
        ports.get("secure-port", 0), ports.get("secure-envoy-port", 0), dict(_ENTRY.findall(entries[1]))
    )
    return found if found.text().split() == text.split() else None


def chart_values(
    template: InjectionTemplate, defaults: tuple[str, ...], exclude_inbound_ports: str = ""
) -> str:
    """Return the values of Istio's chart for the template, as YAML; `defaults` are the templates now in use.

    In an IstioOperator they belong below `spec.values`.
    """
    order = [*(defaults or (SIDECAR,)), *([] if TEMPLATE in defaults else [TEMPLATE])]
    values: dict[str, object] = {
        "sidecarInjectorWebhook": {"defaultTemplates": order, "templates": {TEMPLATE: template.text()}}
    }
    if exclude_inbound_ports:
        values["global"] = {"proxy": {"excludeInboundPorts": exclude_inbound_ports}}
    return dump(values)
