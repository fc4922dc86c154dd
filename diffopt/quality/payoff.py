"""What a bench says in a line each: how many times as fast, beside what, whether that pays, and how far from the floor."""

from diffopt.files.bench import Contender, Floor, Rate, Work
from diffopt.files.interval import Interval
from diffopt.files.latency import Speedup
from diffopt.text import with_interval


def floor_milliseconds(work: Work, rates: tuple[Rate, ...], kernels: bool) -> float | None:
    """What the arithmetic of a step takes at these rates. With `kernels` what has one is at its rate.

    Convolutions are taken at the rate of a linear layer: they are such products. None where a rate is not there.
    """
    best = {rate.kind: rate.flops for rate in sorted(rates, key=lambda r: r.flops)}
    parts = [("plain", work.linear + work.convolution), ("attention", work.attention)]
    parts += [
        ("kernel" if kernels else "plain", work.kernel),
        ("fp8_attention" if kernels else "attention", work.fp8_attention),
    ]
    if any(many and kind not in best for kind, many in parts):
        return None
    return 1e3 * sum(many / best[kind] for kind, many in parts if many)


def floor(milliseconds: float | None, step: float | None, computed: float, steps: int) -> Floor | None:
    """Beside a step that took so long. `computed` is the share of all steps' arithmetic that a cache left.

    Steps are timed without the first, which a cache computes whole.
    """
    if milliseconds is None or step is None:
        return None
    share = (computed * steps - 1) / (steps - 1)
    return Floor(milliseconds * share, step / (milliseconds * share)) if share > 0 else None


def pays(speedup: Interval) -> str | None:
    """What an interval says that is no gain; None of one that is."""
    low, _ = speedup.ends or (speedup.mean, speedup.mean)
    return "does not pay" if speedup.mean < 1 else "no gain shown" if low <= 1 else None


def verdict(contender: Contender, base: str, eager: str, gpu: bool) -> str | None:
    """`native FP8: 1.41x [1.40, 1.42] compiled BF16 per step, 1.37x [1.36, 1.38] end to end; ...`; None of `eager`.

    `base` and `eager` are those contenders' titles. A step decides whether it pays, and a whole call where there is but one
    step.
    """
    if contender.title == eager:
        return None
    ratio, beside = (contender.over_base, base) if contender.over_base else (contender.over_eager, eager)
    if ratio is None:
        return None
    line = f"{contender.title}: {_ratios(ratio, beside)}"
    if beside != eager and contender.over_eager:
        line += f" ({_ratios(contender.over_eager, eager)})"
    if contender.floor and contender.milliseconds_per_step:
        took = contender.milliseconds_per_step.median
        line += f"; {took:.3g} ms a step, {contender.floor.times:.2f} x its floor of {contender.floor.milliseconds:.3g} ms"
    loss = pays(ratio.per_step or ratio.end_to_end)
    return line + (f"; {loss} on this {'GPU' if gpu else 'machine'}" if loss else "")


def _ratios(ratio: Speedup, beside: str) -> str:
    if ratio.per_step is None:
        return f"{_times(ratio.end_to_end)} {beside} end to end"
    return f"{_times(ratio.per_step)} {beside} per step, {_times(ratio.end_to_end)} end to end"


def _times(ratio: Interval) -> str:
    mean, _, ends = with_interval(ratio).partition(" ")
    return f"{mean}x {ends}".rstrip()
