"""The artifact of a store that is most like the one that a step would make: of the same model first."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from diffopt.artifact import Pipeline
from diffopt.jobs.plan import Step
from diffopt.store.entry import Entry
from diffopt.store.store import Store


@dataclass(frozen=True)
class Near:
    entry: Entry
    own: tuple[str, ...]
    """What the step itself has otherwise, dotted keys: settings, seed, version, libraries."""
    inputs: tuple[str, ...]
    """Names of its inputs that are others."""
    same_model: bool


class Past:
    """What a store has. Records are read where they are asked for, each once."""

    def __init__(self, store: Store):
        self.store = store
        self._models: dict[str, frozenset[str]] = {}
        self._identities: dict[str, dict[str, Any]] = {}

    @cached_property
    def _entries(self) -> dict[str, Entry]:
        """By fingerprint, the oldest of a kind first."""
        return {e.fingerprint: e for e in self.store.all_entries()}

    def of(self, stage: str, kind: str) -> list[Entry]:
        """Every artifact that a stage made, the oldest first."""
        return [e for e in self._entries.values() if e.kind == kind and e.record["identity"]["stage"] == stage]

    def nearest(self, step: Step) -> Near | None:
        """None where its stage never made one. Of equally near ones the newest."""
        ours, models = self._flat(step.fingerprint, step.identity), sources(step)
        best: tuple[tuple[bool, int, int], Near] | None = None
        for entry in self.of(step.stage.name, step.kind):
            theirs = self._flat(entry.fingerprint, entry.record["identity"])
            other = [k for k in sorted({*ours, *theirs}) if ours.get(k) != theirs.get(k)]
            own = tuple(k for k in other if not _is_input(k) or _is_absent(ours, theirs, k))
            inputs = tuple(dict.fromkeys(k.split(".")[1] for k in other if k not in own))
            near = Near(entry, own, inputs, bool(models & self.models(entry.fingerprint)))
            rank = (not near.same_model, len(own), len(inputs))
            if best is None or rank <= best[0]:
                best = rank, near
        return best[1] if best else None

    def models(self, fingerprint: str) -> frozenset[str]:
        """The sources of the models that an artifact was made from, as far as the store still has its inputs."""
        if fingerprint not in self._models:
            entry = self._entries.get(fingerprint)
            found: frozenset[str] = frozenset()
            if entry and entry.kind == Pipeline.kind:
                found = frozenset({_source(entry.record["identity"])})
            elif entry:
                found = frozenset().union(*(self.models(each) for each in entry.inputs))
            self._models[fingerprint] = found
        return self._models[fingerprint]

    def _flat(self, fingerprint: str, identity: Mapping[str, Any]) -> dict[str, Any]:
        if fingerprint not in self._identities:
            self._identities[fingerprint] = flat(dict(identity))
        return self._identities[fingerprint]


def sources(step: Step) -> frozenset[str]:
    """Those of the models that a step's artifact is made from."""
    if step.kind == Pipeline.kind:
        return frozenset({_source(step.identity)})
    return frozenset().union(*(sources(parent) for parent in step.parents()))


def _source(identity: Mapping[str, Any]) -> str:
    return str((identity["config"].get("model") or {}).get("source"))


def _is_input(key: str) -> bool:
    return key.startswith("inputs.")


def _is_absent(ours: Mapping[str, Any], theirs: Mapping[str, Any], key: str) -> bool:
    """Whether one has such an input and the other none: the plain graph beside the quantized, say."""
    return (ours.get(key) in (None, [])) != (theirs.get(key) in (None, []))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Of two flat identities, one line a key."""
    return [f"{k} {old.get(k)!r} -> {new.get(k)!r}" for k in sorted({*old, *new}) if old.get(k) != new.get(k)]


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts, and lists of them, as one of dotted keys; `config.` is left out of them."""
    if isinstance(value, list) and value and all(isinstance(x, dict) for x in value):
        value = {str(i): x for i, x in enumerate(value)}
    if not isinstance(value, dict) or not value:
        return {prefix.removeprefix("config."): value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{prefix}.{key}" if prefix else key)
    return found
