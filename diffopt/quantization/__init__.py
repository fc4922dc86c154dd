"""Post-training quantization: what is observed, the scales that follow from it, and a backbone's quantized layers."""
