"""Plots of a sweep by matplotlib, as SVG for the page: one file a kind."""
