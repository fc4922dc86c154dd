"""ONNX graphs of a backbone: traced, their weights folded, their quantizers counted."""
