"""Cache methods: one small file each, named as in conf/cache. Importing them does not import torch."""
