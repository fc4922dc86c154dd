"""Canonical JSON and its hash; refuses values whose bytes may differ between processes."""

import hashlib
import json
import math


def canonical(value: object) -> str:
    """`value` as JSON with sorted keys and floats to 12 significant digits.

    Raises TypeError for what has no stable bytes: a set, a path, NaN, a key that is not a string.
    """
    return json.dumps(_plain(value, "$"), sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(value: object) -> str:
    """The first 16 hex digits of the sha256 of `canonical(value)`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def _plain(value: object, where: str) -> object:
    if isinstance(value, dict):
        if bad := [k for k in value if not isinstance(k, str)]:
            raise TypeError(f"{where}: key {bad[0]!r} is not a string")
        return {k: _plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{where}: {value!r} has no canonical form")
        return float(f"{value:.12g}")  # a sweep's range(0.6, 1, 0.2) yields 0.7999999999999999
    if value is None or isinstance(value, str | int | bool):
        return value
    raise TypeError(f"{where}: a {type(value).__name__} has no canonical form")
