"""What a bench says: floors and verdicts are arithmetic, and which contenders there are."""

import pytest

from diffopt.files.bench import Contender, Memory, Rate, Work
from diffopt.files.interval import CallInterval
from diffopt.files.latency import Speedup, Spread
from diffopt.quality.payoff import floor, floor_milliseconds, pays, verdict
from diffopt.runtimes import contenders

WORK = Work(calls=2, kernel=80e12, linear=10e12, convolution=5e12, attention=10e12)
RATES = (
    Rate("plain", (1, 1, 1), 500e12), Rate("plain", (2, 2, 2), 1000e12), Rate("kernel", (1, 1, 1), 2000e12),
    Rate("attention", (1, 1, 1, 1, 1), 400e12),
)  # fmt: skip


def test_a_floor_takes_the_best_rate_of_each_kind() -> None:
    assert floor_milliseconds(WORK, RATES, kernels=False) == pytest.approx(95 + 25)
    assert floor_milliseconds(WORK, RATES, kernels=True) == pytest.approx(15 + 40 + 25)
    assert floor_milliseconds(WORK, RATES[:2], kernels=False) is None
    assert floor_milliseconds(WORK, RATES[:2] + RATES[3:], kernels=True) is None


def test_a_floor_beside_a_step() -> None:
    found = floor(80.0, 100.0, 1.0, 20)
    assert found
    assert (found.milliseconds, found.times) == (80.0, 1.25)
    half = floor(80.0, 100.0, 10.5 / 20, 20)
    assert half
    assert half.milliseconds == pytest.approx(40.0)
    assert floor(None, 100.0, 1.0, 20) is None
    assert floor(80.0, None, 1.0, 1) is None


@pytest.mark.parametrize(
    ("mean", "low", "high", "said"),
    [
        (1.41, 1.40, 1.42, None),
        (0.85, 0.80, 0.90, "does not pay"),
        (0.99, 0.95, 1.03, "does not pay"),
        (1.02, 0.99, 1.05, "no gain shown"),
        (1.2, None, None, None),
    ],
)
def test_what_is_slower_does_not_pay(mean: float, low: float, high: float, said: str | None) -> None:
    assert pays(CallInterval(mean, low, high, 7)) == said


def timed(name: str, title: str, base: Speedup | None, eager: Speedup | None) -> Contender:
    return Contender(
        name=name, title=title, opening=1, first_picture=1, seconds_per_image=Spread(1, 1, 1),
        milliseconds_per_step=Spread(94.2, 94, 95), seconds_per_call=[1], memory=Memory(weights=1), over_base=base,
        over_eager=eager, floor=floor(65.0, 94.2, 1.0, 20),
    )  # fmt: skip


def ratio(step: float, whole: float) -> Speedup:
    return Speedup(CallInterval(whole, whole - 0.01, whole + 0.01, 7), CallInterval(step, step - 0.01, step + 0.01, 7))


def test_a_verdict_has_both_ratios_the_floor_and_eager_beside() -> None:
    titles = "compiled BF16", "eager BF16"
    assert verdict(timed("native", "native FP8", ratio(1.41, 1.37), ratio(1.93, 1.84)), *titles, True) == (
        "native FP8: 1.410x [1.400, 1.420] compiled BF16 per step, 1.370x [1.360, 1.380] end to end (1.930x [1.920, 1.940] "
        "eager BF16 per step, 1.840x [1.830, 1.850] end to end); 94.2 ms a step, 1.45 x its floor of 65 ms"
    )
    slow = verdict(timed("native", "native INT8", ratio(0.58, 0.6), None), *titles, True)
    assert slow
    assert slow.endswith("; does not pay on this GPU")
    base = verdict(timed("compiled", "compiled BF16", None, ratio(1.37, 1.3)), *titles, False)
    assert base
    assert base.startswith("compiled BF16: 1.370x [1.360, 1.380] eager BF16 per step")
    assert verdict(timed("eager", "eager BF16", ratio(0.7, 0.7), None), *titles, True) is None


def test_a_cache_comes_on_top_of_compiled_and_native() -> None:
    names = [e.name for e in contenders.entries(["eager", "compiled", "native"], "cachify")]
    assert names == ["eager", "compiled", "native", "compiled+cachify", "native+cachify"]
    assert [e.name for e in contenders.entries(["eager", "onnxruntime"], "cachify")] == [
        "eager", "eager+cachify", "onnxruntime+cachify",
    ]  # fmt: skip


def test_weights_are_estimated_with_the_copy_that_is_quantized() -> None:
    assert contenders.weight_bytes(["eager", "compiled"], 12, 2, 1) == 24
    assert contenders.weight_bytes(["eager", "compiled", "native"], 12, 2, 1) == 36
    assert contenders.weight_bytes(["native"], 12, 2, 1) == 24
