"""From a composed config to validated choices: every error of every group at once."""

import re
from collections.abc import Iterable
from typing import Any, get_args

from omegaconf import Container, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from diffopt.errors import ConfigError, closest, suggestion
from diffopt.groups import GROUPS, OURS, PICKS, Model
from diffopt.groups.choices import Choices
from diffopt.groups.format import as_read
from diffopt.schema import Group

CALIBRATED = ("format", "calib", "train", "sense")
"""Groups that nothing is done for with a model that is quantized already and taken as it is."""
ADVICE = {
    "less_than_equal": "lower it",
    "less_than": "lower it",
    "greater_than_equal": "raise it",
    "greater_than": "raise it",
    "literal_error": "choose one of these",
    "int_parsing": "give a whole number",
    "int_type": "give a whole number",
    "int_from_float": "give a whole number",
    "float_parsing": "give a number",
    "float_type": "give a number",
    "bool_parsing": "give true or false",
    "bool_type": "give true or false",
    "string_type": "give a text",
    "list_type": "give a list: [a,b]",
    "too_short": "name one",
    "missing": "set it in the recipe",
}


def choose(config: dict[str, Any]) -> Choices:
    """Validate a composed config. Raises ConfigError, a line for each thing that is wrong."""
    errors: list[str] = []
    groups: dict[str, Group | None] = {}
    known = [*PICKS, "seed", "store", "objective", "ship"]
    for name in (n for n in config if n not in known):
        errors.append(f"{name}: no such key (got {config[name]!r}); {nearest(name, known)}")
    for name, schema in GROUPS.items():
        value = config.get(name)
        if value is None or value == {}:  # an option without a field (cache=none) is the choice of nothing
            groups[name] = None
        elif not isinstance(value, dict):
            errors.append(f"{name}: is not an option of the group (got {value!r}); choose {name}=OPTION")
        else:
            schema = schema.shape(value)
            try:
                groups[name] = schema.model_validate(value, context={"calibrates": any(config.get(n) for n in CALIBRATED)})
            except ValidationError as e:
                errors += [explain(name, schema, x) for x in e.errors()]
    store = config.get("store")
    if not isinstance(store, str) or not store:
        errors.append(f"store: is not a path (got {store!r}); give a directory, or set DIFFOPT_STORE")
    seed = config.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        errors.append(f"seed: is not a whole number from 0 to {2**32 - 1} (got {seed!r}); give one")
    model = groups.get("model")
    found = model.quantized if isinstance(model, Model) else None
    if found:
        errors += [
            f"{name}: the model is quantized already, {found.about} (got {name}={getattr(groups[name], 'name', '...')}); "
            f"leave {name} out"
            for name in CALIBRATED
            if groups.get(name) is not None
        ]
    if errors:
        raise ConfigError("\n".join(errors))
    others = {name: groups.pop(name) for name in GROUPS if name not in OURS}
    return Choices(seed=seed, others=others, **groups | ({"format": as_read(found)} if found else {}))  # type: ignore[arg-type]


def explain(group: str, schema: type[Group], error: Any) -> str:
    """One of pydantic's errors as one line of ours."""
    where = ".".join([group, *map(str, error["loc"])])
    kind, message, got = error["type"], error["msg"], error["input"]
    if kind == "missing" or got == "???":
        return f"{where}: is not set; give it with {where}=VALUE"
    if kind == "value_error":
        message = message.removeprefix("Value error, ")
        if not error["loc"] or " (got " in message:  # a check of all fields together, which names one and what it got
            return f"{where}.{message}"
        what, _, advice = message.partition("; ")
        return f"{where}: {what} (got {got!r}); {advice}"
    if kind == "extra_forbidden":
        return f"{where}: no such key (got {got!r}); {nearest(str(error['loc'][-1]), within(schema, error['loc'][:-1]))}"
    if kind == "literal_error" and isinstance(got, str):
        known = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        close = closest(got, known)
        advice = f"did you mean {' or '.join(close)}?" if close else ADVICE[kind]
        return f"{where}: must be {error['ctx']['expected']} (got {got!r}); {advice}"
    if kind == "model_type":
        fields = ", ".join(f"{name}: ..." for name in within(schema, error["loc"]))
        return f"{where}: must be a map (got {got!r}); give {{{fields}}}"
    message = message[0].lower() + message[1:]
    return f"{where}: {message.replace('input should be', 'must be')} (got {got!r}); {ADVICE.get(kind, 'mend it')}"


def within(schema: type[BaseModel], path: Iterable[Any]) -> Iterable[str]:
    """Fields of the schema, or of that of its field with fields of its own."""
    for name in path:
        annotation = schema.model_fields[name].annotation if name in schema.model_fields else None
        parts = get_args(annotation) or (annotation,)
        schema = next((t for t in parts if isinstance(t, type) and issubclass(t, BaseModel)), schema)
    return schema.model_fields


def dotted(full_key: str) -> str:
    """OmegaConf's `eval.metrics[0]` as a command line has it: `eval.metrics.0`."""
    return full_key.replace("[", ".").replace("]", "")


def said(text: str) -> str:
    """The first line of another library's error, as part of ours."""
    first = text.splitlines()[0] if text else "is wrong"
    word = first.partition(" ")[0]
    return first if word[1:] != word[1:].lower() else first[0].lower() + first[1:]  # not of the name of a class


def unresolved(error: OmegaConfBaseException) -> str:
    """An error of an interpolation as a line of ours."""
    where, given = dotted(error.full_key or "config"), "an interpolation"
    if found := re.match(r"ConfigError raised while resolving interpolation: oc\.env: (.*)", error.msg or str(error)):
        return f"{where}: {found[1]}"  # of our resolver, which OmegaConf passes on as text alone
    if isinstance(error.parent_node, Container) and error.key is not None:
        given = OmegaConf.to_container(error.parent_node, resolve=False)[error.key]  # type: ignore[index]
    return f"{where}: {said(error.msg or str(error))} (got {given}); mend it"


def nearest(name: str, known: Iterable[str], listed: str = "") -> str:
    """`suggestion`, of names that have no order of their own."""
    return suggestion(name, sorted(known), listed)
