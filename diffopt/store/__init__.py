"""Artifacts by what they were made from: fingerprints, pinned sources, and the store on disk."""
