"""How good pictures are: they are scored, summed up with intervals, and held against gates and floors."""
