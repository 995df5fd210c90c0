"""Matchers of Prometheus: which series belong to secure targets, and which to plaintext ones."""

from __future__ import annotations

SECURE = 'job=~"istio-secure-.+"'
# A derived job keeps the plaintext job's name, so its targets are recognised by Istio's secure ports.
SECURE_PORTS = 'instance=~".+:(15091|15092)"'
# Plaintext ports of a proxy. ztunnel only has 15020.
PLAINTEXT = 'instance=~".+:(15020|15090)",app!="ztunnel"'
