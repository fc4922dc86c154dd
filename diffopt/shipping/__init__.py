"""What leaves the store: weights as another program loads them, the rest of the pipeline, and a card with the evidence."""
