"""A live Kubernetes cluster: access to its API server, and the pods to scrape."""
