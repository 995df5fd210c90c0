"""SPIFFE IDs, X.509 certificates and requests, trust bundles, and when to renew.

Pure: bytes and `now` are arguments.
"""
