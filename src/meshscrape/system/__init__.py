"""The machine's edge: atomic files, child processes, supervision, HTTP, clock, Envoy's admin socket, CA client."""
