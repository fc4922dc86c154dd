"""cuDNN's FP8 attention, of the package nvidia-cudnn-frontend: a graph for each shape, built once."""

# mypy: disable-error-code="no-untyped-call"

import logging
from dataclasses import dataclass
from functools import cache
from typing import Any

import cudnn
import torch

log = logging.getLogger("diffopt")

Layout = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and strides of a tensor [batch, heads, tokens, channels]."""
UIDS = tuple(range(1, 13))
"""Of q, k, v, the result, the six scales and the two peaks, in the order in which they are given."""


@dataclass(frozen=True)
class Built:
    graph: Any
    workspace: int
    """Bytes."""


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scales: torch.Tensor, scale: float) -> torch.Tensor | None:
    """As `diffopt::fp8_attention`; None for shapes that cuDNN refuses, which is said once each."""
    result = q.new_empty((*q.shape[:-1], v.shape[-1]))
    tensors = [x.transpose(1, 2) for x in (q, k, v, result)]
    device = q.device.index
    built = _graph(tuple((tuple(x.shape), x.stride()) for x in tensors), scale, device)
    if built is None:
        return None
    handle = _handle(device)
    cudnn.set_stream(handle, torch.cuda.current_stream().cuda_stream)
    spare = torch.empty(2, device=q.device)  # the largest of the probabilities and of the result, which cuDNN tells
    workspace = torch.empty(built.workspace, device=q.device, dtype=torch.uint8)
    given = [*tensors, *scales.view(6, 1, 1, 1, 1).unbind(), *spare.view(2, 1, 1, 1, 1).unbind()]
    built.graph.execute(given, workspace, handle=handle, tensor_uids=UIDS)
    return result


@cache
def _handle(device: int) -> Any:
    with torch.cuda.device(device):
        return cudnn.create_handle()


@cache
def _graph(layouts: tuple[Layout, ...], scale: float, device: int) -> Built | None:
    fp8, fp32 = cudnn.data_type.FP8_E4M3, cudnn.data_type.FLOAT
    graph = cudnn.pygraph(io_data_type=fp8, intermediate_data_type=fp32, compute_data_type=fp32, handle=_handle(device))
    laid = zip(layouts[:3], UIDS[:3], strict=True)
    inputs = [graph.tensor(dim=list(dims), stride=list(steps), data_type=fp8).set_uid(uid) for (dims, steps), uid in laid]
    factors = [graph.tensor(dim=[1] * 4, stride=[1] * 4, data_type=fp32).set_uid(uid) for uid in UIDS[4:10]]
    names = ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o")
    given = dict(zip("qkv", inputs, strict=True)) | dict(zip(names, factors, strict=True))
    try:
        output, _, *peaks = graph.sdpa_fp8(**given, attn_scale=scale, is_inference=True)
        dims, strides = layouts[3]
        output.set_output(True).set_dim(list(dims)).set_stride(list(strides)).set_data_type(fp8).set_uid(UIDS[3])
        for peak, uid in zip(peaks, UIDS[10:], strict=True):
            peak.set_uid(uid).set_output(True).set_dim([1] * 4).set_stride([1] * 4).set_data_type(fp32)
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A])
        graph.check_support()
        graph.build_plans()
    except (cudnn.cudnnGraphNotSupportedError, RuntimeError, ValueError) as e:
        shapes = ", ".join(str(list(dims)) for dims, _ in layouts[:3])
        log.warning("native: cuDNN has no FP8 attention for %s, so it is computed in 16 bits: %s", shapes, str(e)[:200])
        return None
    return Built(graph, max(graph.get_workspace_size(), 1))
