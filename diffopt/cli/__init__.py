"""The command line: `diffopt` itself and its small sub-commands."""
