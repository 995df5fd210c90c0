"""Explain why a target is up, down or refused: `gather` observes, the other modules judge (pure)."""
