"""Finding the value of a cache's knob: values tried, and what the search found."""
