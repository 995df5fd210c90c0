"""The scrape proxy: follows discovery, keeps its Envoy's routes, answers HTTP SD, counts refusals."""
