"""Proof from outside: probes observe, checks judge (pure), reports tell."""
