"""Which way a metric gets better."""


def sign(better: str) -> int:
    """What turns a metric so that more is better: 1, or -1 for one of which `lower` is."""
    return 1 if better == "higher" else -1
