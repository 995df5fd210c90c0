"""One function for each Envoy resource; each returns plain data for JSON (pure)."""
