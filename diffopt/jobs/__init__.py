"""One job: planned, checked before it starts, run."""
