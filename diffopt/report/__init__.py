"""The page of one run, made anew from its artifacts at any time."""
