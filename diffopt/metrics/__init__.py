"""Metrics: one small file each, with what it measures, range, better direction, source and the weights it needs."""

from diffopt.errors import MetricError
from diffopt.metrics.metric import SOURCES, Metric, Scorer, SetScorer, Weights
from diffopt.registry import Registry

OURS = ("psnr", "ssim", "ms-ssim", "lpips", "clip", "clip-iqa", "imagereward", "fid", "cmmd", "dtssd", "clip-temporal")

METRICS = Registry("diffopt.metrics", "METRIC", Metric, OURS, MetricError, "{}")

__all__ = ["METRICS", "SOURCES", "Metric", "Scorer", "SetScorer", "Weights"]
