"""Kubernetes objects: manifests and dumps, a view per kind, a pod's targets, a local mesh's manifests."""
