"""Kubernetes objects as plain data, indexed; nothing here changes an object.

Objects come from manifests and from `kubectl get -o yaml`. They stay mappings, because typed models would
drop fields that they do not know.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meshscrape.errors import InputError
from meshscrape.istio.fields import Document
from meshscrape.istio.ports import shorten

Object = Mapping[str, Any]

POD_OWNERS = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job")
_CLUSTER_SCOPED = frozenset(
    {
        "Namespace", "Node", "PersistentVolume", "ClusterRole", "ClusterRoleBinding", "StorageClass",
        "CustomResourceDefinition", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration",
        "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "APIService", "PriorityClass",
        "IngressClass", "RuntimeClass", "GatewayClass", "CSIDriver", "CSINode", "VolumeAttachment",
        "FlowSchema", "PriorityLevelConfiguration", "CertificateSigningRequest", "ClusterTrustBundle",
    }
)  # fmt: skip
# These fields differ between two readings of the same object.
_VOLATILE = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink")
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """The reference of an object: API group (empty: core), kind, namespace (empty: of the cluster), name."""

    group: str
    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        kind = f"{self.kind}.{self.group}" if self.group else self.kind
        return f"{kind} {self.namespace}/{self.name}" if self.namespace else f"{kind} {self.name}"

    @property
    def printable(self) -> bool:
        """Return whether it has no control characters, which could act on a terminal or end a comment."""
        return all(part.isprintable() for part in (self.group, self.kind, self.namespace, self.name))


@dataclass(frozen=True, slots=True)
class Manifest:
    """An object and where it was read (`dump.yaml:120`)."""

    ref: Ref
    data: Object
    where: str = ""


class Inventory:
    """All known objects, indexed. Iteration is in the order of their references."""

    __slots__ = ("_by_kind", "_by_namespace", "_by_ref")

    def __init__(self, manifests: Iterable[Manifest] = ()) -> None:
        self._by_ref = {
            manifest.ref: manifest for manifest in sorted(manifests, key=lambda manifest: manifest.ref)
        }
        self._by_kind: dict[str, list[Manifest]] = {}
        self._by_namespace: dict[tuple[str, str], list[Manifest]] = {}
        for manifest in self._by_ref.values():
            self._by_kind.setdefault(manifest.ref.kind, []).append(manifest)
            self._by_namespace.setdefault((manifest.ref.namespace, manifest.ref.kind), []).append(manifest)

    def __iter__(self) -> Iterator[Manifest]:
        return iter(self._by_ref.values())

    def __len__(self) -> int:
        return len(self._by_ref)

    def __contains__(self, ref: object) -> bool:
        return ref in self._by_ref

    def get(self, ref: Ref) -> Manifest | None:
        """Return the object, or None."""
        return self._by_ref.get(ref)

    def of_kind(self, kind: str, group: str | None = None) -> tuple[Manifest, ...]:
        """Return all objects of a kind; of one API group when it is given (`Gateway` exists in two)."""
        manifests = self._by_kind.get(kind, ())
        return tuple(manifest for manifest in manifests if group is None or manifest.ref.group == group)

    def in_namespace(self, namespace: str, kind: str, group: str | None = None) -> tuple[Manifest, ...]:
        """Return the objects of a kind in one namespace."""
        manifests = self._by_namespace.get((namespace, kind), ())
        return tuple(manifest for manifest in manifests if group is None or manifest.ref.group == group)

    def replace(self, manifest: Manifest) -> "Inventory":
        """Return this inventory with `manifest` added, or in place of the object of the same reference."""
        return self.changed([manifest], ())

    def remove(self, ref: Ref) -> "Inventory":
        """Return this inventory without the object `ref`."""
        return self.changed((), [ref])

    def changed(self, manifests: Iterable[Manifest], removed: Iterable[Ref]) -> "Inventory":
        """Return this inventory after changes: first removals, then `manifests` added or put in place."""
        by_ref = dict(self._by_ref)
        for ref in removed:
            by_ref.pop(ref, None)
        by_ref.update((manifest.ref, manifest) for manifest in manifests)
        return Inventory(by_ref.values())


def load_inventory(documents: Iterable[Document | Manifest]) -> Inventory:
    """Return the inventory of all objects in `documents`; lists (`kind: List`, `PodList`) are taken apart.

    Raises InputError for data that is not an object, and for two different objects with one reference.
    """
    by_ref: dict[Ref, Manifest] = {}
    for manifest in _manifests(documents):
        other = by_ref.setdefault(manifest.ref, manifest)
        if other is not manifest and stable(other.data) != stable(manifest.data):
            raise InputError(
                f"{manifest.ref} is also in {other.where or 'another file'}, and differs",
                where=manifest.where,
                remedy="give each object once: either the manifest or the dump of the cluster",
            )
    return Inventory(by_ref.values())


def _manifests(documents: Iterable[Document | Manifest]) -> Iterator[Manifest]:
    for document in documents:
        if isinstance(document, Manifest):
            yield document
            continue
        for data, where in flatten(document.data, document.where):
            yield manifest_of(data, where)


def flatten(data: Object, where: str) -> Iterator[tuple[Object, str]]:
    """Return the objects of `data` with their places: itself, or the items of a list (and of lists in it)."""
    kind = data.get("kind")
    items = data.get("items")
    if isinstance(kind, str) and kind.endswith("List") and isinstance(items, Sequence):
        for index, item in enumerate(items):
            place = f"{where}: items[{index}]"
            if not isinstance(item, Mapping):
                raise InputError("not an object", where=place, remedy="remove it")
            if "kind" not in item and kind != "List":
                # Items of a typed list (PodList) have no kind and apiVersion of their own.
                item = {"apiVersion": data.get("apiVersion"), "kind": kind.removesuffix("List"), **item}
            yield from flatten(item, place)
    else:
        yield data, where


def manifest_of(data: Object, where: str = "") -> Manifest:
    """Return the object with its reference. Raise InputError at `where` for data that is not an object."""
    return Manifest(ref_of(data, where), data, where)


def ref_of(data: Object, where: str = "") -> Ref:
    """Return the reference of an object; a namespaced one without a namespace is in `default`."""
    api_version, kind = data.get("apiVersion"), data.get("kind")
    metadata = data.get("metadata")
    if not isinstance(api_version, str) or not isinstance(kind, str) or not api_version or not kind:
        raise InputError(
            "not a Kubernetes object", where=where, remedy="every object needs apiVersion and kind"
        )
    name = dig(metadata, "name") or dig(metadata, "generateName")
    if not isinstance(name, str):
        raise InputError(f"{shorten(kind)} without a name", where=where, remedy="write metadata.name")
    namespace = dig(metadata, "namespace")
    if kind in _CLUSTER_SCOPED:
        namespace = ""
    elif not isinstance(namespace, str) or not namespace:
        namespace = "default"
    ref = Ref(api_version.rpartition("/")[0], kind, namespace, name)
    if not ref.printable:
        raise InputError(
            f"{shorten(kind)!r} with control characters in its name",
            where=where,
            remedy="correct the name; no API server accepts it",
        )
    return ref


def stable(data: Object) -> dict[str, Any]:
    """Return an object without its status and volatile fields, to compare two readings of it."""
    metadata = {key: value for key, value in as_mapping(data.get("metadata")).items() if key not in _VOLATILE}
    notes = {key: value for key, value in annotations(data).items() if key != LAST_APPLIED}
    metadata.pop("annotations", None)
    if notes:
        metadata["annotations"] = notes
    if metadata.get("namespace") == "default":
        del metadata["namespace"]
    return {key: value for key, value in data.items() if key != "status"} | {"metadata": metadata}


def dig(data: Any, *path: str | int, default: Any = None) -> Any:
    """Return the value at `path` of mappings and lists; `default` where it is absent or null."""
    for step in path:
        if isinstance(data, Mapping) and isinstance(step, str):
            data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int) and -len(data) <= step < len(data):
            data = data[step]
        else:
            return default
    return default if data is None else data


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return `value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def as_list(value: Any) -> list[Any]:
    """Return `value` if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def labels(data: Any) -> Mapping[str, str]:
    """Return the labels of an object (or of a pod template)."""
    return _strings(dig(data, "metadata", "labels"))


def annotations(data: Any) -> Mapping[str, str]:
    """Return the annotations of an object (or of a pod template)."""
    return _strings(dig(data, "metadata", "annotations"))


def _strings(value: Any) -> Mapping[str, str]:
    """Return the values of a mapping that are strings; the API server accepts no others."""
    mapping = as_mapping(value)
    if all(isinstance(text, str) for text in mapping.values()):
        return mapping
    return {key: text for key, text in mapping.items() if isinstance(text, str)}


def template_path(kind: str) -> tuple[str, ...] | None:
    """Return where an object of a kind has its pod template; `()` for a Pod, None for other kinds."""
    if kind == "Pod":
        return ()
    if kind == "CronJob":
        return ("spec", "jobTemplate", "spec", "template")
    return ("spec", "template") if kind in POD_OWNERS else None


def pod_template(data: Object) -> Mapping[str, Any] | None:
    """Return the pod template (metadata and spec) of an object; a Pod is its own; None for other kinds."""
    path = template_path(str(data.get("kind")))
    if path is None:
        return None
    return as_mapping(dig(data, *path)) if path else data


def containers(template: Any) -> Iterator[Mapping[str, Any]]:
    """Return all containers of a pod or pod template; init containers first, because some are sidecars."""
    for field in ("initContainers", "containers"):
        for container in as_list(dig(template, "spec", field)):
            if isinstance(container, Mapping):
                yield container


def oldest(manifests: Iterable[Manifest]) -> Manifest | None:
    """Return the object that Istio uses if there are several: the oldest, then by name; None without any."""
    return min(manifests, key=age, default=None)


def age(manifest: Manifest) -> tuple[str, str]:
    """Return a sort key that puts older objects first; objects from files have no time and come last."""
    created = dig(manifest.data, "metadata", "creationTimestamp", default="9999")
    return str(created), manifest.ref.name


def selects(selector: Any, having: Mapping[str, str]) -> bool:
    """Return whether a label selector (matchLabels and matchExpressions) matches the labels `having`.

    An empty selector matches everything, and a null one nothing. An unknown operator matches nothing.
    """
    if not isinstance(selector, Mapping):
        return False
    if any(having.get(key) != value for key, value in as_mapping(selector.get("matchLabels")).items()):
        return False
    return all(_expression(expression, having) for expression in as_list(selector.get("matchExpressions")))


def _expression(expression: Any, having: Mapping[str, str]) -> bool:
    key = dig(expression, "key", default="")
    values = as_list(dig(expression, "values"))
    match dig(expression, "operator"):
        case "In":
            return having.get(key) in values if key in having else False
        case "NotIn":
            return having.get(key) not in values
        case "Exists":
            return key in having
        case "DoesNotExist":
            return key not in having
    return False
