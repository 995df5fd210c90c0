"""Observe: what a cluster's objects say about its meshes, workloads, scrapers, and the traps they are in."""
