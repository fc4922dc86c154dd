"""Equal meaning has an equal key, and different meaning a different one, whatever is said and in whatever order."""

import json
import math
import random
from typing import Any

import pytest
from fuzzing import fuzzed, json_values
from hypothesis import assume, given
from hypothesis import strategies as st

from diffopt.store.fingerprint import canonical, fingerprint


def shuffled(value: Any, draw: random.Random) -> Any:
    if isinstance(value, dict):
        keys = [*value]
        draw.shuffle(keys)
        return {k: shuffled(value[k], draw) for k in keys}
    return [shuffled(x, draw) for x in value] if isinstance(value, list) else value


def meaning(value: Any) -> Any:
    """What two values share exactly where they mean the same: true is not 1, and a float has twelve digits."""
    if isinstance(value, dict):
        return "object", {k: meaning(x) for k, x in value.items()}
    if isinstance(value, list | tuple):
        return "list", [meaning(x) for x in value]
    if isinstance(value, float):
        return "float", f"{value:.12g}"
    return type(value).__name__, value


@fuzzed(200)
@given(json_values, st.randoms(use_true_random=False))
def test_the_order_of_keys_and_a_way_through_json_mean_nothing(value: Any, draw: random.Random) -> None:
    assert fingerprint(shuffled(value, draw)) == fingerprint(value)
    assert canonical(json.loads(canonical(value))) == canonical(value)


@fuzzed(200)
@given(json_values, json_values)
def test_keys_are_equal_where_the_meaning_is(one: Any, other: Any) -> None:
    assert (canonical(one) == canonical(other)) == (meaning(one) == meaning(other))
    assert (fingerprint(one) == fingerprint(other)) == (meaning(one) == meaning(other))


@fuzzed(100)
@given(st.floats(1e-6, 1e6))
def test_a_difference_beyond_the_twelfth_digit_means_nothing_and_a_larger_one_does(x: float) -> None:
    rounded = float(f"{x:.12g}")
    assert fingerprint({"alpha": rounded}) == fingerprint({"alpha": x})
    assert fingerprint({"alpha": x * (1 + 1e-9)}) != fingerprint({"alpha": x})


@fuzzed(60)
@given(st.sampled_from([math.nan, math.inf, -math.inf, {1}, b"x", {1: 2}, object()]), json_values)
def test_what_has_no_stable_bytes_has_no_key(odd: Any, beside: Any) -> None:
    with pytest.raises(TypeError):
        fingerprint({"beside": beside, "odd": [odd]})


CHANGES: dict[str, tuple[Any, Any]] = {
    "calib.alpha": (st.floats(0.0, 1.0), {"quantize", "sample", "score"}),
    "calib.n_steps": (st.integers(1, 50), {"observe.0", "merge", "quantize", "sample", "score"}),
    "eval.steps": (st.integers(1, 50), {"reference", "sample", "score"}),
    "seed": (st.integers(0, 2**31), {"observe.0", "quantize", "reference", "sample", "score"}),
    "model.guidance_scale": (st.just(0.0), set()),
}


def test_a_setting_changes_the_keys_of_what_reads_it_and_of_what_follows_alone(plan: Any) -> None:
    """In any order of the overrides."""
    base = {s.name: s.fingerprint for s in plan("+recipe=emoji_int8_sq").steps}
    known = {"calib.alpha": 0.2, "calib.n_steps": 4, "eval.steps": 20, "seed": 0, "model.guidance_scale": 0.0}

    @fuzzed(15)
    @given(st.permutations(sorted(CHANGES)), st.data())
    def keyed(order: list[str], data: st.DataObject) -> None:
        chosen = {key: data.draw(CHANGES[key][0]) for key in order[:2]}
        assume(all(not isinstance(v, float) or v == 0 or v > 1e-6 for v in chosen.values()))
        given = [f"{k}={v!r}" for k, v in chosen.items()]
        one, other = ({s.name: s.fingerprint for s in plan("+recipe=emoji_int8_sq", *g).steps} for g in (given, given[::-1]))
        assert one == other
        moved = {name for name, key in one.items() if base[name] != key}
        really = {k for k, v in chosen.items() if v != known[k]}
        assert {n for k in really for n in CHANGES[k][1]} <= moved
        assert moved if really else not moved

    keyed()
