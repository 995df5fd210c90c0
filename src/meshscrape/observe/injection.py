"""Decide whether a pod will be injected, and by which revision.

The webhooks select by labels of namespace and pod (`mutatingwebhook.yaml`). Then the injector itself may
refuse (`injectRequired`). An annotation alone never reaches a webhook.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshscrape.istio.names import INJECT, NAMESPACE_INJECTION, NEVER_INJECTED, REVISION
from meshscrape.kube import objects
from meshscrape.kube.views.proxy import Proxy
from meshscrape.observe.control import DEFAULT
from meshscrape.observe.model import Injection


def injection_of(
    namespace: str, namespace_labels: Mapping[str, str], template: Any, proxy: Proxy | None
) -> Injection:
    """Return how a pod of this template in this namespace gets its proxy, with a reason to show to users."""
    labels, annotations = objects.labels(template), objects.annotations(template)
    if proxy is not None and proxy.complete:
        return Injection("manual", True, reason="the pod template contains the proxy")
    chosen = _webhook(namespace_labels, labels)
    if not chosen.injected:
        return chosen
    refused = ""
    if objects.dig(template, "spec", "hostNetwork") is True:
        refused = "the pod uses the host's network, which is never injected"
    elif namespace in NEVER_INJECTED:
        refused = f"pods of {namespace} are never injected"
    elif INJECT not in labels and annotations.get(INJECT, "").lower() in ("false", "no", "off", "n"):
        refused = f"annotation {INJECT} is false"
    return Injection("none", False, reason=refused) if refused else chosen


def _webhook(namespace_labels: Mapping[str, str], labels: Mapping[str, str]) -> Injection:
    wish, revision = labels.get(INJECT), labels.get(REVISION)
    space, space_revision = namespace_labels.get(NAMESPACE_INJECTION), namespace_labels.get(REVISION)
    if wish == "false":
        return Injection("none", False, reason=f"pod label {INJECT}=false")
    if space == "enabled":
        return Injection("namespace-label", True, DEFAULT, f"namespace label {NAMESPACE_INJECTION}=enabled")
    if space is not None:
        return Injection("none", False, reason=f"namespace label {NAMESPACE_INJECTION}={space}")
    if space_revision:
        return Injection(
            "namespace-revision", True, space_revision, f"namespace label {REVISION}={space_revision}"
        )
    if revision:
        return Injection("pod-revision", True, revision, f"pod label {REVISION}={revision}")
    if wish == "true":
        return Injection("pod-label", True, DEFAULT, f"pod label {INJECT}=true")
    return Injection("none", False, reason="neither the namespace nor the pod requests it")
