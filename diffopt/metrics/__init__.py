"""Metrics: one small file each, with what it measures, its range, and which way is better."""

from diffopt.metrics.metric import METRICS, Metric

__all__ = ["METRICS", "Metric"]
