"""One function per Envoy resource, each returning plain data ready for JSON. Pure."""
