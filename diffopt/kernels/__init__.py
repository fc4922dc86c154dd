"""Layers that compute in few bits by real kernels in torch, and a calibrated backbone made of them."""
