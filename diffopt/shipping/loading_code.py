"""How a folder is loaded by five programs, as its card says it: the code, or why not."""

from collections.abc import Iterator

from diffopt.shipping.consumers import CONSUMERS, Consumer
from diffopt.shipping.markdown import cell
from diffopt.shipping.subject import Subject


def section(subject: Subject) -> Iterator[str]:
    yield "## How to load it"
    yield ""
    yield f"`{subject.place}` is this folder{_base(subject)}. What is called untried follows from that program's sources,"
    yield "and was not run. Each takes the families of models that it knows."
    for consumer in CONSUMERS:
        yield ""
        yield from _of(subject, consumer)
    if subject.way.kind == "native":
        yield ""
        yield from _native(subject)


def _base(subject: Subject) -> str:
    return "" if subject.whole or subject.hub else f", `{subject.load.base}` the base model"


def _of(subject: Subject, consumer: Consumer) -> Iterator[str]:
    load = subject.load
    name = f"**{consumer.name}** {consumer.version}"
    if refusal := consumer.refusal(load):
        yield f"{name}: no; {cell(refusal) if '`' not in refusal else refusal}."
        return
    gpu = consumer.gpu(load)
    needs = f", on {gpu}" if gpu and subject.way.artifact else ""
    yield f"{name}{needs}{'' if subject.way.kind in consumer.ran else ' (untried)'}:"
    yield ""
    yield f"```{consumer.language}"
    yield from consumer.code(load)
    yield "```"


def _native(subject: Subject) -> Iterator[str]:
    load = subject.load
    several = len(load.backbones) > 1
    place = f'**diffopt.load("{load.place}")' if several else f'{load.backbones[0]}=diffopt.load("{load.place}")'
    yield "**diffopt**, by the kernels of its native runtime:"
    yield ""
    yield "```python"
    yield "import diffopt, torch"
    yield f"from diffusers import {load.pipeline}"
    yield f'pipe = {load.pipeline}.from_pretrained("{load.base}", {place}, torch_dtype=torch.{load.dtype}).to("cuda")'
    yield "```"
