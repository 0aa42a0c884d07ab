"""Training that survives: whole checkpoints, signals, and resuming as if nothing had happened."""
