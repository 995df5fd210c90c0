"""A Kubernetes cluster of processes: real control plane, real Istio, a stand-in for the kubelet."""
