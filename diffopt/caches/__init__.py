"""Cache methods: one small file each, named as in conf/cache. Importing them does not import torch."""

from diffopt.caches.method import Method, Settings
from diffopt.errors import ConfigError
from diffopt.registry import Registry

OURS = ("cachify", "first_block", "pyramid_attention", "faster_cache", "taylor_seer", "mag_cache", "cache_dit")

METHODS = Registry("diffopt.caches", "METHOD", Method, OURS, ConfigError, "cache.method")

__all__ = ["METHODS", "Method", "Settings"]
