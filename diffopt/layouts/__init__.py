"""Files of quantized backbones as other programs read them: one file a layout."""
