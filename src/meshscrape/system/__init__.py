"""The machine's edge: files, processes, supervision, HTTP, clock, Envoy's admin socket, the CA client."""
