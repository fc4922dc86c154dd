"""Which shapes a graph or an engine plan takes, profile by profile, and what is wrong with others. Imports no torch."""

from collections.abc import Mapping, Sequence

Bounds = Mapping[str, tuple[Sequence[int], Sequence[int]]]
"""Of one profile: by input its lowest and highest shape."""
Shapes = Mapping[str, Sequence[int]]


def holding(profiles: Sequence[Bounds], shapes: Shapes) -> int | None:
    """Index of the first profile that takes all of the shapes."""
    return next((i for i, bounds in enumerate(profiles) if _wrong(bounds, shapes) is None), None)


def misfit(profiles: Sequence[Bounds], shapes: Shapes, what: str) -> str:
    """Why no profile takes the shapes: the input and its axis, and what `what` takes there in each profile."""
    nearest = max(profiles, key=lambda bounds: sum(_holds(bounds, name, shapes[name]) for name in shapes))
    name, axis = _wrong(nearest, shapes) or ("", None)
    given = list(shapes[name])
    if axis is None:
        there = len(nearest[name][0])
        return f"{name}: has {len(given)} axes, and {what} takes {there} (got {given}); export it again from this model"
    spans = dict.fromkeys(_span(low[axis], high[axis]) for low, high in (bounds[name] for bounds in profiles))
    size = "model.height, model.width, model.frames or model.max_sequence_length"
    advice = size if axis else "export.batch_size or export.max_batch_size"
    return (
        f"{name}: axis {axis} is {given[axis]}, and {what} takes {' or '.join(spans)} (got {given}); "
        f"export it with another {advice}"
    )


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _wrong(bounds: Bounds, shapes: Shapes) -> tuple[str, int | None] | None:
    """The first input that a profile does not take, and its axis; None of what has another number of axes."""
    for name, shape in shapes.items():
        low, high = bounds[name]
        if len(shape) != len(low):
            return name, None
        for axis, (a, n, b) in enumerate(zip(low, shape, high, strict=True)):
            if not a <= n <= b:
                return name, axis
    return None


def _holds(bounds: Bounds, name: str, shape: Sequence[int]) -> bool:
    return _wrong(bounds, {name: shape}) is None
