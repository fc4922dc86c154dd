"""Many jobs at once: planned together, compared on one page, and the one to ship named."""
