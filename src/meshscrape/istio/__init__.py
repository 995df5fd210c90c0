"""What Istio's users write: annotations, ProxyConfig, environment settings, manifests. Pure.

The CA protocol's messages live here too.
"""
