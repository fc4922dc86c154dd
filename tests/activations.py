"""Write diffopt/models/activations.json anew: what a call of each model of conf/ takes beside its weights.

    python tests/activations.py [MODEL ...]

Prints a row a model, of one row of the backbone and one picture or video decoded; the others stay as they are. Needs no GPU and
no download: every model is made of its config on the meta device.
"""

import json
import sys
from dataclasses import astuple

from omegaconf import OmegaConf

from diffopt import models
from diffopt.cli.searchpath import bundled
from diffopt.models import activations
from diffopt.models.activations import Anatomy, Call
from diffopt.models.family import Size
from diffopt.store import assets


def configs(option):
    """Of the backbone and the VAE of an option of conf/model."""
    folder = assets.locate(str(option.get("architecture") or option.source))
    index = json.loads((folder / "model_index.json").read_text())
    name = next(n for n in models.family(option.family).backbones if n in index)
    return tuple(json.loads((folder / n / "config.json").read_text()) for n in (name, "vae"))


def options():
    for path in sorted((bundled("conf") / "model").glob("*.yaml")):
        option = OmegaConf.load(path)
        if option.family != models.AUTO.name:
            yield path.stem, option


def size(option):
    return Size(1, option.height, option.width, option.get("max_sequence_length") or 77, option.get("frames") or 1)


def row(found: Anatomy):
    def flat(call: Call):
        return [[float(f"{x:.8g}") for x in astuple(side)] for side in (call.each, call.shared)]

    calls = {n: {str(k): flat(x) for k, x in getattr(found, n).items()} for n in ("call", "decode", "kept")}
    return {"parameters": found.parameters, "vae": found.vae, **calls}


def main():
    from diffopt.pipeline.activations import measured

    asked, table = sys.argv[1:], json.loads(activations.TABLE.read_text()) if sys.argv[1:] else {}
    for name, option in options():
        if asked and name not in asked:
            continue
        backbone, vae = configs(option)
        try:
            found = measured(models.family(option.family), backbone, vae, size(option))
        except Exception as e:  # its code asks for numbers, which there are none of
            print(f"{name:14} is not measured: {type(e).__name__}: {str(e)[:100]}", flush=True)
            continue
        table[activations.key(option.family, backbone, vae)] = row(found)
        at = [f"{by[2].at(size(option)) / 2**20:9.1f}" for by in (found.call, found.decode, found.kept)]
        print(f"{name:14} {found.parameters / 1e9:6.2f} B  call {at[0]} MiB  decode {at[1]} MiB  kept {at[2]} MiB", flush=True)
        lines = [f"{json.dumps(k)}: {json.dumps(x, separators=(',', ':'))}" for k, x in sorted(table.items())]
        activations.TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
