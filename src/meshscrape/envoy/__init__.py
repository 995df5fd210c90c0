"""Whole Envoy configurations of sidecars, gateways and the scrape proxy, and the files they watch (pure)."""
