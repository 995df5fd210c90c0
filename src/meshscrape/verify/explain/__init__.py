"""Explain why a target is up, down or refused: `gather` looks, the other modules judge (pure)."""
