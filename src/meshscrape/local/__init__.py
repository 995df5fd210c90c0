"""Composition root for one machine: workloads, agents, CA and Prometheus as child processes."""
