"""What the tests share: real peers, real processes, and looking until something is so."""
