"""AdamW with moments in 8 bits goes where AdamW goes."""

import copy

import torch

from diffopt.training.blockwise import BLOCK, BlockwiseAdamW


def weights(dtype: torch.dtype = torch.float32) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(40, 33, generator=torch.Generator().manual_seed(0)).to(dtype))


def train(p: torch.nn.Parameter, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Towards zero, with noise that follows from the step."""
    for step in steps:
        noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
        p.grad = (p.detach().float() + 0.1 * noise).to(p.dtype)
        optimizer.step()


def test_it_goes_where_adamw_goes() -> None:
    ours, theirs, start = weights(), weights(), weights().detach()
    how = {"lr": 1e-2, "weight_decay": 0.1}
    train(ours, BlockwiseAdamW([ours], **how), range(50))
    train(theirs, torch.optim.AdamW([theirs], **how), range(50))
    moved = (theirs - start).norm()
    assert (theirs - ours).norm() < 0.05 * moved


def test_its_moments_take_a_byte_each() -> None:
    p = weights()
    optimizer = BlockwiseAdamW([p], lr=1e-2)
    train(p, optimizer, range(1))
    state = optimizer.state[p]
    blocks = -(-p.numel() // BLOCK)
    assert (state["mean"].dtype, state["root"].dtype) == (torch.int8, torch.uint8)
    assert state["mean"].numel() == state["root"].numel() == blocks * BLOCK
    assert state["mean_scale"].numel() == blocks


def test_it_goes_on_bit_equal_in_16_bits_too() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        whole, part = weights(dtype), weights(dtype)
        train(whole, BlockwiseAdamW([whole], lr=1e-2), range(6))
        first = BlockwiseAdamW([part], lr=1e-2)
        train(part, first, range(3))
        resumed = torch.nn.Parameter(part.detach().clone())
        second = BlockwiseAdamW([resumed], lr=1e-2)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        train(resumed, second, range(3, 6))
        assert torch.equal(resumed, whole)


def test_what_is_empty_or_has_no_gradient_is_left_alone() -> None:
    empty, still = torch.nn.Parameter(torch.empty(0, 4)), weights()
    empty.grad = torch.empty(0, 4)
    BlockwiseAdamW([empty, still], lr=1.0).step()
    assert torch.equal(still, weights())
