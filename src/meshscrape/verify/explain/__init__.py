"""Why a target is up, down or refused: what is gathered, how it is judged."""
