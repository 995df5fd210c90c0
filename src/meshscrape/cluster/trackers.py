"""Find the tool that keeps an object as it is written elsewhere and would revert a change. Pure."""

from __future__ import annotations

from meshscrape.istio.names import MANAGED_BY
from meshscrape.kube import objects
from meshscrape.kube.objects import Object

# An annotation or label that a tool writes on what it tracks -> the tool.
# Sources: Argo CD "Resource Tracking"; Flux "Kustomization" and "HelmRelease"; Helm's own checks of
# ownership; OLM's labels of what it installs.
_MARKS = {
    "argocd.argoproj.io/tracking-id": "Argo CD",
    "argocd.argoproj.io/instance": "Argo CD",
    "kustomize.toolkit.fluxcd.io/name": "Flux",
    "helm.toolkit.fluxcd.io/name": "Flux",
    "meta.helm.sh/release-name": "Helm",
    "olm.owner": "OLM",
    "operators.coreos.com/component": "OLM",
}


def tracker(data: Object | None) -> str:
    """Return the tool that tracks an object; empty when none does."""
    if data is None:
        return ""
    marks = {**objects.labels(data), **objects.annotations(data)}
    tool = next((tool for mark, tool in _MARKS.items() if mark in marks), "")
    return tool or ("Helm" if marks.get(MANAGED_BY) == "Helm" else "")
