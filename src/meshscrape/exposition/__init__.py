"""Prometheus expositions: scan, merge, negotiate, convert. Sans-I/O: bytes in, bytes out."""
