"""Every layout that is read, by its name, and all backbones of a pipeline.

A reader takes a file or folder, the backbone that it is to be, on the meta device, and what its family's layers are called
elsewhere, and gives a `Read`. It raises ValueError,
`what`, for what is not what it says; shapes are compared with the backbone's here.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffopt.layouts import folder_reader, native_reader, single_file_reader, svdquant_reader
from diffopt.layouts.fit import fitted
from diffopt.layouts.names import Names
from diffopt.layouts.read import Read, Tensors

READERS: dict[str, Callable[[Path, Any, Names | None], Read]] = {
    "huggingface": folder_reader.read,
    "comfyui": single_file_reader.read,
    "native": native_reader.read,
    "svdquant": svdquant_reader.read,
    "nunchaku": svdquant_reader.read,
}


def read(layout: str, backbones: Mapping[str, tuple[Path, Any]], names: Names | None) -> Read:
    """Of all backbones of a pipeline, each with its path and what it is to be; of several their names stand before the layers'.

    `names` are the family's, where they are known. Raises ValueError, naming the layer, for what is not there or has other
    shapes.
    """
    layers: dict[str, tuple[str, Tensors]] = {}
    plain: Tensors = {}
    attention: Tensors = {}
    for backbone, (path, module) in backbones.items():
        prefix = f"{backbone}." if len(backbones) > 1 else ""
        found = READERS[layout](path, module, names)
        for name, (format, tensors) in found.layers.items():
            try:
                layers[prefix + name] = (format, fitted(format, tensors, module.get_submodule(name)))
            except (ValueError, AttributeError) as e:
                why = "is no layer of the model" if isinstance(e, AttributeError) else e
                raise ValueError(f"{prefix}{name} {why}") from None
        plain |= {prefix + n: x for n, x in found.plain.items()}
        attention |= {prefix + n: x for n, x in found.attention.items()}
    return Read(layers, plain, attention)
