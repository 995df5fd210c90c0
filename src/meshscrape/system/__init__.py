"""The machine's edge: atomic files, child processes, supervision, HTTP, the clock, Envoy's admin socket, the CA's client."""
