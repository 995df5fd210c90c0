"""Mutual TLS for Prometheus scraping in a service mesh, proven end to end."""

__version__ = "0.1.0"
