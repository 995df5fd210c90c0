"""What must change, and in which order: (what was observed, what is wanted) -> changes. Pure."""
