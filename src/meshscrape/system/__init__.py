"""Access to the machine: files, processes, supervision, HTTP, clock, Envoy's admin socket, the CA client."""
