"""Which blocks of a backbone are reused at which denoising step. Plain values and plain Python: no torch, no model.

Whoever runs a cached backbone asks this: the torch runtime, and whoever cuts a graph at the reused blocks.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

MIDDLE = "mid_block"
"""A UNet's block between its down and up blocks, in no list."""
REGEX, NOT = "re:", "!"

Scope = Literal["block", "self_attention", "cross_attention"]
Reuse = Literal["output", "residual"]


@dataclass(frozen=True)
class Policy:
    """`{blocks: ["*", "!up_blocks.-1"], every: 2}`: the blocks, and the steps at which they are not computed again.

    Steps are denoising steps as they are asked of the pipeline, from 0, however many backbone calls each makes.
    """

    blocks: tuple[str, ...]
    """Globs over block names, regular expressions after `re:`, both after `!` to leave out again what came before. The
    blocks of a list may be counted from its end: `up_blocks.-1`."""
    every: int | None = None
    """Computed at every so many steps, counted from step 0; None reuses at all steps from `start` on."""
    start: int = 0
    """The first step that may be reused."""
    stop: int | None = None
    """The first step that is not any more; None is the end."""
    steps: tuple[int, ...] | None = None
    """Exactly these steps, instead of the three fields above."""
    part: Scope = "block"
    """What of a block is reused: all of it, or its attention alone."""
    reuse: Reuse = "output"
    """What it gave, or what it added to what it was given (a transformer's blocks)."""

    def reuses(self, step: int) -> bool:
        """Whether the blocks are reused at this step. Step 0 never is: there is nothing yet."""
        if step <= 0:
            return False
        if self.steps is not None:
            return step in self.steps
        within = self.start <= step and (self.stop is None or step < self.stop)
        return within and (self.every is None or step % self.every != 0)

    def schedule(self, steps: int) -> list[bool]:
        """For each of a run's steps whether the blocks are reused."""
        return [self.reuses(step) for step in range(steps)]

    def reused(self, names: Sequence[str]) -> list[str]:
        """Those of a backbone's blocks (`block_names`) that the policy names.

        Raises ValueError, in the words of a user's error, where they are none, where a pattern names none, and where all
        are named whole: then nothing of a step would be computed, and the picture could not follow it.
        """
        found: set[str] = set()
        for pattern in self.blocks:
            hit = matched(pattern.removeprefix(NOT), names)
            if not hit:
                raise ValueError(f"matches no block (got {pattern!r}); there are {briefly(names)}")
            found = found - hit if pattern.startswith(NOT) else found | hit
        check_left(found, names, [*self.blocks], whole=self.part == "block")
        return [n for n in names if n in found]

    def misfit(self, steps: int) -> str | None:
        """What is wrong with it for a run of so many steps, as `FIELD: ...; what to do`; None where nothing is."""
        last = steps - 1
        if self.steps is not None and (outside := [s for s in self.steps if s > last]):
            return f"steps: the run's steps are 0 to {last} (got {outside[0]}); drop it, or raise eval.steps"
        if self.start > last:
            return f"start: the run's steps are 0 to {last} (got {self.start}); lower it, or raise eval.steps"
        if self.stop is not None and self.stop > steps:
            return f"stop: the run has {steps} steps (got {self.stop}); lower it, null is the end"
        if not any(self.schedule(steps)):
            field = "steps" if self.steps is not None else "every" if self.every else "start"
            return f"{field}: reuses nothing in {steps} steps (got {getattr(self, field)}); drop the cache, or raise eval.steps"
        return None


def block_names(blocks: Mapping[str, int], middle: bool = False) -> list[str]:
    """The blocks that can be reused, in the order in which the backbone calls them: `LIST.INDEX`, and a UNet's mid_block
    after its first list. `blocks` counts each list's, in order."""
    found: list[str] = []
    for i, (name, count) in enumerate(blocks.items()):
        found += [MIDDLE] if middle and i == 1 else []
        found += [f"{name}.{j}" for j in range(count)]
    return found


def stem(pattern: str) -> str | None:
    """The list of blocks that a pattern names in full, as `up_blocks` of `!up_blocks.-1`; None where it leaves that open."""
    body = pattern.removeprefix(NOT)
    name = body.partition(".")[0]
    return name if name.isidentifier() and not body.startswith(REGEX) else None


def matched(pattern: str, names: Sequence[str]) -> set[str]:
    """The blocks that a glob or a regular expression names."""
    aliases = _aliases(names)
    if pattern.startswith(REGEX):
        return {n for n in names if re.search(pattern.removeprefix(REGEX), n)}
    return {n for n in names if any(fnmatchcase(a, pattern) for a in aliases[n])}


def check_left(found: Collection[str], names: Sequence[str], given: object, whole: bool = True) -> None:
    """Raises ValueError where nothing is found, and where all blocks are, whole."""
    if not found:
        raise ValueError(f"leaves no block to reuse (got {given}); there are {briefly(names)}")
    if whole and len(found) == len(names):
        raise ValueError(
            f"matches all {len(names)} blocks, so that a reused step would compute nothing (got {given}); "
            f"leave one out, e.g. by '!{names[-1]}'"
        )


def segments(names: Sequence[str], reused: Iterable[str]) -> list[list[str]]:
    """The reused blocks in runs without another block between."""
    chosen, found = {*reused}, list[list[str]]()
    for before, name in zip([None, *names], names, strict=False):
        if name in chosen and before in chosen:
            found[-1].append(name)
        elif name in chosen:
            found.append([name])
    return found


def briefly(names: Sequence[str]) -> str:
    """Block names by list: `down_blocks.0-2, mid_block, up_blocks.0-2`."""
    lists: dict[str, list[str]] = {}
    for name in names:
        stem, _, index = name.rpartition(".")
        lists.setdefault(stem or index, []).append(index)
    return ", ".join(k if v == [k] else f"{k}.{v[0]}" + (f"-{v[-1]}" if v[1:] else "") for k, v in lists.items())


def check_pattern(pattern: str) -> None:
    """Raises ValueError for a regular expression that is none."""
    body = pattern.removeprefix(NOT)
    if body.startswith(REGEX):
        try:
            re.compile(body.removeprefix(REGEX))
        except re.error as e:
            raise ValueError(f"is not a regular expression: {e}; mend it, or write a glob without {REGEX!r}") from None
    elif not body:
        raise ValueError("is empty; give a glob over block names, such as up_blocks.*")


def _aliases(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Each block's name, and that which counts from the end of its list."""
    size: dict[str, int] = {}
    for name in names:
        stem = name.rpartition(".")[0]
        size[stem] = size.get(stem, 0) + 1
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        stem, _, index = name.rpartition(".")
        found[name] = (name, f"{stem}.{int(index) - size[stem]}") if stem else (name,)
    return found
