"""Scrape targets with their expected identity, and the Prometheus configuration made of them. Pure."""
