"""Properties that hypothesis tries: how many examples, and from which seed.

`DIFFOPT_SEED` is the seed, which a failure names, and `DIFFOPT_EXAMPLES` multiplies how many are tried: 1 in the tests, more by
`make soak`. Nothing is remembered between runs, so that one seed tries the same each time.
"""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Verbosity, seed, settings
from hypothesis import strategies as st

SEED = int(os.environ.get("DIFFOPT_SEED", "0"))
TIMES = int(os.environ.get("DIFFOPT_EXAMPLES", "1"))

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
"""What a JSON file may say."""


def limits(examples: int, times: int = TIMES, **more: Any) -> settings:
    return settings(
        max_examples=examples * times,
        deadline=None,
        database=None,
        derandomize=False,
        verbosity=Verbosity.normal,
        suppress_health_check=[*HealthCheck],
        **more,
    )


def fuzzed(examples: int) -> Callable[[Any], Any]:
    """Decorates a test that `given` makes examples for."""
    return lambda test: seed(SEED)(limits(examples)(test))
