"""Build Prometheus configuration and scrape targets with their expected identity. Pure."""
