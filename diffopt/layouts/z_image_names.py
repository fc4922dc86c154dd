"""Z-Image's layers under the names of its makers and of ComfyUI: q, k and v are one layer.

As diffusers' `convert_z_image_transformer_checkpoint_to_diffusers` reads them.
"""

from diffopt.layouts.names import Names

LISTS = ("noise_refiner", "context_refiner", "layers")
LAST = ("linear", "adaLN_modulation.1")
NAMES = Names(
    layers={
        **{f"{x}.*.attention.qkv": tuple(f"{x}.*.attention.to_{n}" for n in "qkv") for x in LISTS},
        **{f"{x}.*.attention.out": (f"{x}.*.attention.to_out.0",) for x in LISTS},
        "x_embedder": ("all_x_embedder.2-1",),
        **{f"final_layer.{x}": (f"all_final_layer.2-1.{x}",) for x in LAST},
    },
    tensors={f"{x}.*.attention.{n}_norm.weight": f"{x}.*.attention.norm_{n}.weight" for x in LISTS for n in "qk"},
    same=True,
)
