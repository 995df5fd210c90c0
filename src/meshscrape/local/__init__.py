"""Compose a mesh on one machine: workloads, agents, CA and Prometheus as child processes."""
