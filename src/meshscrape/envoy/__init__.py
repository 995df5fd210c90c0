"""Whole Envoy configurations: sidecar, gateway, and the files they watch. Pure."""
