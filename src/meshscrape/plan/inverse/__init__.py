"""Plan the way back: take back what meshscrape wrote from today's objects. Pure."""
