"""A pinned diffusers pipeline at work: opened, placed, its prompts encoded, drawn with."""
