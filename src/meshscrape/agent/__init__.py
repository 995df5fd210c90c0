"""The process next to each Envoy: certificate, bootstrap, supervision, health, merged metrics."""
