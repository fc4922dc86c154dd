"""What goes in and comes out as files: prompts, pictures, videos, and data sets of pictures with captions."""
