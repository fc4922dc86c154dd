"""What the parity of the native runtime says, for the report. Imports no torch."""

from diffopt.files.parity import ComparedLayer, ParityFile

WORST = 10
"""Layers in the report's table."""


def worst_layers(parity: ParityFile) -> list[ComparedLayer]:
    """The worst first."""
    return sorted(parity.layers, key=lambda x: -x.worst.relative_error)


def summary(parity: ParityFile) -> str:
    """The largest error of a step, the pictures, and the worst layer, in a line."""
    layer = worst_layers(parity)[0]
    psnr = sum(parity.psnr) / len(parity.psnr)
    return (
        f"a step's output off by {parity.largest:.2%} at most (step {parity.worst_step} of {len(parity.steps)}; "
        f"{parity.expected[parity.worst_step - 1]:.2%} is what the layers' errors come to), pictures "
        f"{psnr:.1f} dB from the simulated, n={parity.prompts}; worst layer {layer.name}, {layer.worst.relative_error:.2g}"
    )
