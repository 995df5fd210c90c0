"""Conformance: meshscrape on a real Kubernetes control plane, a real Istio and a real Prometheus 3.

`cluster` starts such a cluster as plain processes. The scenarios know only a KUBECONFIG and the cluster's
capabilities.
"""
