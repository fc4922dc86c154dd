"""Choosing a format for every layer: the least summed error under a budget. Imports no torch.

A multiple-choice knapsack, solved exactly (to a gap of 0.01%) as a mixed integer program by scipy's HiGHS.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from diffopt import formats
from diffopt.errors import PlanError
from diffopt.files.sensitivity import SensedLayer
from diffopt.formats.auto import FULL
from diffopt.formats.method import Weights
from diffopt.groups import gpu_rates
from diffopt.groups.format import Budget, MixView, share
from diffopt.groups.sense import Trial

GAP, SLACK = 1e-4, 1e-9


@dataclass(frozen=True)
class Option:
    """One format of one layer."""

    format: str
    error: float
    """Relative squared error of its output, over all denoising steps."""
    bits: float
    """Of all its weights."""
    time: float
    """Estimated, in multiply-accumulates of 16 bits; without a GPU the multiply-accumulates themselves."""


@dataclass(frozen=True)
class Limit:
    field: str
    """Of `format.budget`."""
    cost: str
    """Of an Option."""
    most: float
    """That all layers may cost together."""
    unit: float
    """Of the cost, in what the field counts."""


def options(layer: SensedLayer, format: MixView, plain_bits: float) -> list[Option]:
    """What a layer can be; a convolution that no candidate quantizes stays as it is."""
    found, gpu = [], format.budget.gpu if format.budget else None
    for name in format.candidates:
        if name == FULL or name not in layer.error:
            continue
        bits = formats.method(name).bits(formats.method(name).block_size) * layer.weights
        time = layer.products * (gpu_rates.share(gpu, name) if gpu else 1)
        found.append(Option(name, relative(layer, tried(layer, name, format.weights)), bits, time))
    if FULL in format.candidates or not found:
        found.append(Option(FULL, 0.0, plain_bits * layer.weights, layer.products))
    return found


def tried(layer: SensedLayer, name: str, weights: Weights) -> str:
    """What has the layer's error in the format `name` with the scales that `weights` finds: the format where they were not
    tried, as of ragged layers, whose scales stay those of maxima."""
    found = Trial(name, "weights", weights).name
    return found if found in layer.error else name


def relative(layer: SensedLayer, name: str) -> float:
    """Squared error over squared output of a layer, all denoising steps together, in what was tried under this name."""
    energy = sum(layer.energy)
    return sum(layer.error[name]) / energy if energy else 0.0


def limits(budget: Budget, layers: Sequence[SensedLayer], plain_bits: float) -> list[Limit]:
    weights, products = sum(x.weights for x in layers), sum(x.products for x in layers)
    found = []
    if budget.bits is not None:
        found.append(Limit("bits", "bits", budget.bits * weights, weights))
    if budget.bytes is not None:
        most = share(budget.bytes) * plain_bits * weights if isinstance(budget.bytes, str) else 8.0 * budget.bytes
        found.append(Limit("bytes", "bits", most, plain_bits * weights / 100 if isinstance(budget.bytes, str) else 8))
    if budget.time is not None:
        found.append(Limit("time", "time", share(budget.time) * products, products / 100))
    return found


def choose(choices: Sequence[Sequence[Option]], budget: Sequence[Limit]) -> list[Option]:
    """One option of each layer. Raises PlanError, one line, for a budget that even the cheapest options break."""
    if broken := [line for limit in budget for line in _broken(choices, limit)]:
        raise PlanError("\n".join(broken))
    tightened = list(budget)
    while True:
        found = _solved(choices, tightened)
        over = [x for x in budget if sum(getattr(o, x.cost) for o in found) > x.most * (1 + SLACK)]
        if not over:
            return found
        # The solver keeps a limit to one in a million: take that off, once more where it was not enough.
        tightened = [replace(x, most=x.most * (1 - 2e-6)) if x.field in {o.field for o in over} else x for x in tightened]


def _broken(choices: Sequence[Sequence[Option]], limit: Limit) -> list[str]:
    least = sum(min(getattr(o, limit.cost) for o in options) for options in choices)
    if least <= limit.most * (1 + SLACK):
        return []
    sign = "" if limit.unit in (1, 8) or limit.field == "bits" else "%"
    return [
        f"format.budget.{limit.field}: no mix of the candidates is so small, the least is {least / limit.unit:.4g}{sign} "
        f"(got {limit.most / limit.unit:.4g}{sign}); raise it, or add a smaller one to format.candidates"
    ]


def _solved(choices: Sequence[Sequence[Option]], budget: Sequence[Limit]) -> list[Option]:
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    flat = [o for options in choices for o in options]
    layer = np.repeat(np.arange(len(choices)), [len(options) for options in choices])
    one = csr_array((np.ones(len(flat)), (layer, np.arange(len(flat)))), shape=(len(choices), len(flat)))
    errors = np.array([o.error for o in flat])
    rules = [LinearConstraint(one, 1, 1)]
    for limit in budget:
        costs = np.array([getattr(o, limit.cost) for o in flat])
        rules.append(LinearConstraint((costs / limit.most)[None], ub=1))
    solved = milp(
        errors / max(errors.max(), 1e-30),  # the solver's tolerances are absolute
        constraints=rules,
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": GAP},
    )
    if solved.x is None:  # within the solver's tolerance of what cannot be kept: the cheapest of all are it
        return [min(options, key=lambda o: sum(getattr(o, x.cost) / x.most for x in budget)) for options in choices]
    taken = {int(layer[i]): flat[i] for i in np.flatnonzero(np.asarray(solved.x) > 0.5)}
    return [taken[i] for i in range(len(choices))]
