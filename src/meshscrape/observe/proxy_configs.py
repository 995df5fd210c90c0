"""Index ProxyConfig objects by the workloads that they configure, with the precedence of `GetProxyConfig`."""

from __future__ import annotations

from collections.abc import Mapping

from meshscrape.istio.names import ISTIO_NETWORKING
from meshscrape.kube import objects
from meshscrape.kube.objects import Manifest, oldest
from meshscrape.kube.selectors import LabelIndex
from meshscrape.observe.cluster import Cluster


class ProxyConfigs:
    """ProxyConfig objects: environment variables by selector, namespace and mesh; the oldest wins."""

    def __init__(self, cluster: Cluster, root_namespace: str) -> None:
        self._root = root_namespace
        self._selecting: LabelIndex[Manifest] = LabelIndex()
        wide: dict[str, list[Manifest]] = {}
        for proxy_config in cluster.inventory.of_kind("ProxyConfig", ISTIO_NETWORKING):
            match = objects.as_mapping(objects.dig(proxy_config.data, "spec", "selector", "matchLabels"))
            if match:
                self._selecting.add(proxy_config.ref.namespace, {"matchLabels": match}, proxy_config)
            else:
                wide.setdefault(proxy_config.ref.namespace, []).append(proxy_config)
        self._wide = {namespace: oldest(configs) for namespace, configs in wide.items()}

    def selecting(self, namespace: str, labels: Mapping[str, str]) -> Mapping[str, str]:
        """Return the variables for exactly this workload; they win over the annotation."""
        return _environment(oldest(self._selecting.matching(namespace, labels)))

    def wide(self, namespace: str) -> dict[str, str]:
        """Return the variables for the namespace, over those for the mesh; the annotation wins over them."""
        return _environment(self._wide.get(self._root)) | _environment(self._wide.get(namespace))


def _environment(config: Manifest | None) -> dict[str, str]:
    variables = objects.as_mapping(objects.dig(config.data, "spec", "environmentVariables")) if config else {}
    return {str(key): str(value) for key, value in variables.items()}
