"""Every kind of kernel, by the name that files have for it."""

from diffopt.kernels.attention import Fp8Attention
from diffopt.kernels.fp8 import Fp8Linear
from diffopt.kernels.int4 import Int4Linear
from diffopt.kernels.int8 import Int8Linear
from diffopt.kernels.kernel import Kernel
from diffopt.kernels.mxfp8 import Mxfp8Linear
from diffopt.kernels.nvfp4 import Nvfp4Linear

KINDS: dict[str, type[Kernel]] = {
    c.kind: c for c in (Fp8Linear, Int8Linear, Int4Linear, Nvfp4Linear, Mxfp8Linear, Fp8Attention)
}
