"""Plan the changes and their order: (observation, intent) -> changes. Pure."""
