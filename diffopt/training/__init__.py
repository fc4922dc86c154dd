"""Training with the quantizers in place: the losses, the loop, and what it needs to go on from where it was killed."""
