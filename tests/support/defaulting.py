"""What an API server makes of objects that are applied: fields filled in, keys in another order."""

from __future__ import annotations

from typing import Any

from meshscrape.kube.objects import Inventory, Manifest, pod_template, template_path

_POD_SPEC = {
    "dnsPolicy": "ClusterFirst",
    "restartPolicy": "Always",
    "schedulerName": "default-scheduler",
    "terminationGracePeriodSeconds": 30,
}
_CONTAINER = {
    "imagePullPolicy": "IfNotPresent",
    "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File",
}
_PROBE = {"failureThreshold": 3, "periodSeconds": 10, "successThreshold": 1, "timeoutSeconds": 1}
_SPECS: dict[str, dict[str, Any]] = {
    "Deployment": {"progressDeadlineSeconds": 600, "replicas": 1, "revisionHistoryLimit": 10},
    "Service": {"internalTrafficPolicy": "Cluster", "sessionAffinity": "None", "type": "ClusterIP"},
}


def defaulted(inventory: Inventory) -> Inventory:
    """The objects as a cluster gives them back."""
    return inventory.changed((Manifest(each.ref, _stored(each.data), each.where) for each in inventory), ())


def _stored(data: Any) -> dict[str, Any]:
    stored: dict[str, Any] = _sorted(data)
    metadata = stored.setdefault("metadata", {})
    metadata |= {"uid": "7", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z"}
    if stored["kind"] in _SPECS and "spec" in stored:
        stored["spec"] = {**_SPECS[stored["kind"]], **stored["spec"]}
        for port in stored["spec"].get("ports") or ():
            port.setdefault("protocol", "TCP")
    if template_path(stored["kind"]) and (template := pod_template(stored)) and "spec" in template:
        _fill_pod(template["spec"])
    return stored


def _fill_pod(spec: Any) -> None:
    spec.update({key: value for key, value in _POD_SPEC.items() if key not in spec})
    spec.setdefault("securityContext", {})
    for group in ("containers", "initContainers"):
        for container in spec.get(group) or ():
            container.update({key: value for key, value in _CONTAINER.items() if key not in container})
            for variable in container.get("env") or ():
                if variable.get("value") == "":
                    del variable["value"]
            container.setdefault("resources", {})
            for port in container.get("ports") or ():
                port.setdefault("protocol", "TCP")
            for name in ("readinessProbe", "livenessProbe"):
                if name in container:
                    container[name] = {**_PROBE, **container[name]}
    for volume in spec.get("volumes") or ():
        for source in ("configMap", "secret"):
            if source in volume:
                volume[source].setdefault("defaultMode", 420)


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value
