"""Equal values have equal fingerprints in every process, different ones different, and the rest is refused."""

import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffopt.store.fingerprint import canonical, fingerprint


def test_a_fingerprint_is_the_first_16_digits_of_the_sha256_of_compact_json():
    assert fingerprint({"b": [1, None], "a": "x"}) == hashlib.sha256(b'{"a":"x","b":[1,null]}').hexdigest()[:16]


def test_the_order_of_keys_does_not_count():
    assert fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == fingerprint({"b": {"d": 3, "c": 2}, "a": 1})


def test_the_order_of_a_list_counts():
    assert fingerprint([1, 2]) != fingerprint([2, 1])


def test_a_tuple_is_a_list():
    assert fingerprint({"a": (1, (2,))}) == fingerprint({"a": [1, [2]]})


def test_floats_that_differ_by_rounding_are_the_same():
    assert fingerprint(0.1 + 0.2) == fingerprint(0.3)
    assert fingerprint(1 - 0.2) == fingerprint(0.6 + 0.2)


def test_the_twelfth_digit_of_a_float_counts():
    assert fingerprint(0.100000000001) != fingerprint(0.1)


@pytest.mark.parametrize(
    ("one", "other"), [(1, "1"), (True, "true"), (None, "null"), (1, 1.5), ("a", "A"), ([], {}), (0, False)]
)
def test_values_of_different_types_are_different(one, other):
    assert fingerprint(one) != fingerprint(other)


def test_text_outside_ascii_is_kept_apart():
    assert fingerprint("красный") != fingerprint("красная")


@pytest.mark.parametrize(
    "value", [{1, 2}, Path("a"), b"a", object(), math.nan, math.inf, -math.inf], ids=lambda x: type(x).__name__
)
def test_what_has_no_stable_bytes_is_refused_with_its_place(value):
    with pytest.raises(TypeError, match=r"\$\.config\[1\]\.deep"):
        canonical({"config": [0, {"deep": value}]})


def test_a_key_that_is_no_string_is_refused():
    with pytest.raises(TypeError, match=r"\$\.a.*1"):
        canonical({"a": {1: 2}})


def test_another_process_with_another_hash_seed_gives_the_same():
    value = {f"key{i}": i / 7 for i in range(20)}
    code = "from diffopt.store.fingerprint import fingerprint; print(fingerprint({f'key{i}': i / 7 for i in range(20)}))"
    env = {**os.environ, "PYTHONHASHSEED": "12345"}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert said.stdout.strip() == fingerprint(value)
