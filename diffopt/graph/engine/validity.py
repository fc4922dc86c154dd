"""Whether an engine plan can be used here: plans move neither between versions of TensorRT nor to any other GPU."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from diffopt.files.plan import EnginePlanFile
from diffopt.machine import environment as machine


class Probes(Protocol):
    """diffopt.machine.environment.Environment, or a test's."""

    def __getitem__(self, name: str, /) -> Any: ...


def unusable(plan_file: EnginePlanFile, environment: Probes, gpus: Sequence[Mapping[str, Any]] | None = None) -> str | None:
    """Why the plan cannot be run on this machine, in one line, or None.

    `gpus` are as diffopt.machine.environment.gpus tells them, which is asked where none are given.
    """
    builder = environment["tensorrt"]
    made = f"{plan_file.builder} {plan_file.version}"
    if builder is None:
        return (
            f"build: {plan_file.builder} is not installed, which its plan needs (got none); install version {plan_file.version}"
        )
    if (builder["flavour"], builder["version"]) != (plan_file.builder, plan_file.version):
        here = f"{builder['flavour']} {builder['version']}"
        return f"build: the plan is of another builder than is installed (got {made}, here {here}); run the recipe again"
    found = machine.gpus() if gpus is None else gpus
    if not found:
        return f"build: a plan runs on a GPU (got none); it is for {plan_file.target}"
    gpu = found[0]
    if plan_file.capabilities and not _covers(plan_file.capabilities, gpu["capability"]):
        return (
            f"build: the plan is for {plan_file.target} (got {gpu['name']} of {gpu['capability']}); run it on one of those, or "
            "build with TensorRT for this GPU"
        )
    if plan_file.gpu is not None and plan_file.gpu != f"{gpu['name']} sm{gpu['capability']}":
        here = f"{gpu['name']} sm{gpu['capability']}"
        return f"build: the plan was built for another GPU (got {plan_file.gpu}, here {here}); run the recipe again here"
    return None


def _covers(capabilities: Sequence[str], capability: str) -> bool:
    """The newest generation that is named stands for its later members too: a plan for 12.0 runs on 12.1."""
    newest = max(capabilities, key=_number)
    same = _number(capability)[0] == _number(newest)[0]
    return capability in capabilities or (same and _number(capability) > _number(newest))


def _number(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))
