"""Read what users of Istio write: annotations, ProxyConfig, environment settings, YAML. All of it is pure.

The messages of the CA protocol live here too.
"""
