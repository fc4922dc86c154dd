"""How far the native backbone is from what is simulated, denoising step by step."""

from diffopt.files.parity import ParityFile
from diffopt.report.plots.canvas import COLOURS, INK, MARKERS, SLIM, sheet


def agreement(parity: ParityFile, gate: float | None) -> str:
    """Relative errors of the backbone's output given the simulated inputs, and of the latents that it leads itself to."""
    with sheet("Relative error of the native backbone in every denoising step", SLIM, 3.2) as made:
        axes = made.axes()
        axes.grid(True)
        rows = {
            "output, of the same inputs": [s.relative_error for s in parity.steps],
            "what the layers' errors come to": list(parity.expected),
            "latents, led by itself": list(parity.latents),
        }
        for i, (name, values) in enumerate(rows.items()):
            steps = range(1, len(values) + 1)
            axes.plot(steps, [100 * v for v in values], "-" + MARKERS[i], color=COLOURS[i], markersize=4, label=name)
        if gate is not None:
            axes.axhline(100 * gate, color=INK, linestyle=":", linewidth=1.2, label=f"gate: {gate:g}")
        axes.set(xlabel="denoising step", ylabel="relative error, %")
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        made.figure.legend(loc="outside upper left", ncols=1)
    return made.svg
