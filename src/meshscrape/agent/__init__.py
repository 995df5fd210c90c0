"""The process beside each Envoy: certificate, bootstrap, supervision, health, merged metrics."""
