"""The built-in stages: one file each. No stage imports another."""
