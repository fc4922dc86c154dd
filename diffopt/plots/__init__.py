"""Plots of a run or a sweep by matplotlib, as SVG for the page: one file a kind. Nothing imports it before it draws."""

from diffopt.plots.differences import differences
from diffopt.plots.heat import heat, points
from diffopt.plots.lines import dots, lines
from diffopt.plots.trade import trade
from diffopt.plots.tried import tried

__all__ = ["differences", "dots", "heat", "lines", "points", "trade", "tried"]
