"""A cluster from its objects alone: what is there (observe), what must change (plan), as files (render)."""
