"""Plots of a run by matplotlib, as SVG for the page: one file a kind. matplotlib is imported when one is laid out."""
