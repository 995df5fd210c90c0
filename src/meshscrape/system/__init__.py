"""The machine's edge: files, child processes, supervision, HTTP, clock, Envoy's admin socket, the CA's client."""
