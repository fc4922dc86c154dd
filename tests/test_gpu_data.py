"""What only a GPU can show of training data: python -m pytest tests/test_gpu_data.py -m gpu"""

import pytest
import torch
from pictures_with_captions import folder
from test_collect import latents, own, texts
from test_latents import taught
from tiny import bench

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def test_a_set_of_a_gpu_is_that_of_the_cpu_up_to_rounding(tmp_path):
    data = folder(tmp_path, 4)
    here, there = own(bench(), data), own(bench(device="cuda"), data)
    torch.testing.assert_close(latents(there), latents(here), rtol=1e-2, atol=1e-2)
    for name, x in texts(here).items():
        torch.testing.assert_close(texts(there)[name], x, rtol=1e-2, atol=1e-2)


def test_a_model_in_16_bits_has_its_pictures_encoded_in_32(tmp_path):
    data = folder(tmp_path, 4)
    wide, narrow = (own(bench(dtype, device="cuda"), data) for dtype in ("float32", "float16"))
    assert narrow.json("set.json") == wide.json("set.json")
    assert latents(narrow).dtype == torch.float32
    torch.testing.assert_close(latents(narrow), latents(wide), rtol=1e-2, atol=1e-2)  # the stored VAE is the same


def test_no_model_is_left_on_the_gpu(tmp_path):
    own(bench(device="cuda"), folder(tmp_path, 2))
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    own(bench(device="cuda"), tmp_path)
    taught(bench(device="cuda"))
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= before
