"""Tell objects of a cluster from other documents in users' files; refuse what an API server refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshscrape.errors import InputError, Place
from meshscrape.istio.fields import Path, spell
from meshscrape.istio.names import ISTIO_INSTALL, NETWORKING_GROUP
from meshscrape.istio.ports import shorten
from meshscrape.kube.objects import Object, as_list, as_mapping, containers, dig, pod_template, template_path

# Configuration files of tools look like objects of a cluster and often lie beside manifests.
_TOOLS = {
    "kind.x-k8s.io": "configuration of kind",
    "k3d.io": "configuration of k3d",
    "eksctl.io": "configuration of eksctl",
    "kustomize.config.k8s.io": "file of kustomize",
    "kubeadm.k8s.io": "configuration of kubeadm",
    "kubelet.config.k8s.io": "configuration of the kubelet",
    "kubeproxy.config.k8s.io": "configuration of kube-proxy",
    "kubescheduler.config.k8s.io": "configuration of the scheduler",
    "apiserver.config.k8s.io": "configuration of the API server",
    "audit.k8s.io": "configuration of the API server",
    "ctlptl.dev": "configuration of ctlptl",
    "skaffold": "configuration of skaffold",
}
_KUBECONFIG = ("v1", "Config")
# An object of these groups without a name is a mistake, because an API server takes none.
_CLUSTER_GROUPS = ("", "apps", "batch", "policy", "autoscaling")
_CLUSTER_DOMAINS = (
    NETWORKING_GROUP,
    "authorization.k8s.io",
    "istio.io",
    "coreos.com",
    "victoriametrics.com",
)


def reason_to_skip(data: Object) -> str:
    """Return why `data` is not an object of a cluster; empty when it is one, or should be one."""
    version, kind = data.get("apiVersion"), data.get("kind")
    if version is None and kind is None:
        return "not an object: it has no apiVersion and kind"
    if (version, kind) == _KUBECONFIG and "metadata" not in data:
        return "not an object of a cluster but a kubeconfig"
    group = str(version).rpartition("/")[0]
    if group in _TOOLS:
        return f"not an object of a cluster but {_TOOLS[group]}"
    if (
        _is_named(data)
        or is_istio_operator(data)
        or group in _CLUSTER_GROUPS
        or group.endswith(_CLUSTER_DOMAINS)
    ):
        return ""
    return f"not an object of a cluster: {shorten(kind)} of {shorten(group)} without a name"


def is_istio_operator(data: Object) -> bool:
    """Return whether `data` is an IstioOperator: istioctl reads one from a file, where it needs no name."""
    group = str(data.get("apiVersion")).rpartition("/")[0]
    return data.get("kind") == "IstioOperator" and group == ISTIO_INSTALL


def _is_named(data: Object) -> bool:
    return bool(dig(data, "metadata", "name") or dig(data, "metadata", "generateName"))


def refuse_unquoted(data: Object, where: str) -> None:
    """Raise InputError for a value that is not a string although an API server requires one.

    YAML reads unquoted `true` and `9090` as other types, so this is a common mistake in annotations.
    """
    for path, value in _not_strings(data):
        spelled = str(value).lower() if isinstance(value, bool) else str(value)
        example = f'"{spelled}"' if isinstance(value, bool | int) else "it"
        raise InputError(
            f"{spelled if isinstance(value, bool | int | float) else shorten(value)} is not a string",
            where=Place(text=where, field=spell(path)),
            remedy=f"quote it: {example}" if example != "it" else "quote it",
            code="not-a-string",
        )


def _not_strings(data: Object) -> Iterator[tuple[Path, Any]]:
    """Return the values, with their paths, that are not strings although the API requires strings."""
    yield from _metadata(data, ())
    if data.get("kind") == "ConfigMap":
        yield from _values(data.get("data"), ("data",))
    path = template_path(str(data.get("kind")))
    if path is None:
        return
    template = pod_template(data)
    if path:
        yield from _metadata(template, path)
    for container in containers(template):
        for variable in as_list(container.get("env")):
            value = dig(variable, "value")
            if value is not None and not isinstance(value, str):
                name = str(dig(variable, "name", default=""))
                yield (*path, "spec", "containers", str(container.get("name")), "env", name), value


def _metadata(data: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    for field in ("labels", "annotations"):
        yield from _values(dig(data, "metadata", field), (*path, "metadata", field))


def _values(values: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(values, Mapping):
        for key, value in as_mapping(values).items():
            # The API reads null as an empty string.
            if value is not None and not isinstance(value, str):
                yield (*path, key), value
