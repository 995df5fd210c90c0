"""What Istio's users write: annotations, ProxyConfig, environment settings, manifests; the CA protocol's messages. Pure."""
