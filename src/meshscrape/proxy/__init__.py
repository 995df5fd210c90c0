"""The scrape proxy: follow discovery, update its Envoy's routes, answer HTTP SD, count refusals."""
