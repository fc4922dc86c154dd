"""ImageReward on transformers' classes against the official code's arithmetic, restated here from its papers' modules.

Tiny sizes, random weights under the official names; the official network of full size has 447 million of them.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from diffopt.errors import MetricError
from diffopt.metrics import METRICS, Weights

WIDTH, DEPTH, PATCH, SIDE, TEXT, LAYERS, HEADS = 128, 2, 8, 32, 24, 2, 2
MED = {
    "hidden_size": TEXT,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 48,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "vocab_size": 30522,
    "encoder_width": 768,
    "add_cross_attention": True,
}  # the keys of the official file; its vocabulary and encoder width are overruled by the weights there as well
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "kite", "two", "apple", "##s", ",", "caf", "##e"]
PROMPTS = ["A red kite", "two apples, a café", " ".join(["a red kite"] * 20)]


def official_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes as in ImageReward.pt, of the sizes above."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, to: int, of: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (to, of), (to,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    eye = "blip.visual_encoder"
    shapes[f"{eye}.cls_token"] = (1, 1, WIDTH)
    shapes[f"{eye}.pos_embed"] = (1, (SIDE // PATCH) ** 2 + 1, WIDTH)
    shapes[f"{eye}.patch_embed.proj.weight"], shapes[f"{eye}.patch_embed.proj.bias"] = (WIDTH, 3, PATCH, PATCH), (WIDTH,)
    for i in range(DEPTH):
        for k in (1, 2):
            norm(f"{eye}.blocks.{i}.norm{k}", WIDTH)
        linear(f"{eye}.blocks.{i}.attn.qkv", 3 * WIDTH, WIDTH)
        linear(f"{eye}.blocks.{i}.attn.proj", WIDTH, WIDTH)
        linear(f"{eye}.blocks.{i}.mlp.fc1", 4 * WIDTH, WIDTH)
        linear(f"{eye}.blocks.{i}.mlp.fc2", WIDTH, 4 * WIDTH)
    norm(f"{eye}.norm", WIDTH)
    bert = "blip.text_encoder"
    shapes[f"{bert}.embeddings.position_ids"] = (1, 48)
    shapes[f"{bert}.embeddings.word_embeddings.weight"] = (len(WORDS) + 2, TEXT)
    shapes[f"{bert}.embeddings.position_embeddings.weight"] = (48, TEXT)
    norm(f"{bert}.embeddings.LayerNorm", TEXT)
    for i in range(LAYERS):
        layer = f"{bert}.encoder.layer.{i}"
        for part, width in (("attention", TEXT), ("crossattention", WIDTH)):
            linear(f"{layer}.{part}.self.query", TEXT, TEXT)
            linear(f"{layer}.{part}.self.key", TEXT, width)
            linear(f"{layer}.{part}.self.value", TEXT, width)
            linear(f"{layer}.{part}.output.dense", TEXT, TEXT)
            norm(f"{layer}.{part}.output.LayerNorm", TEXT)
        linear(f"{layer}.intermediate.dense", 40, TEXT)
        linear(f"{layer}.output.dense", TEXT, 40)
        norm(f"{layer}.output.LayerNorm", TEXT)
    linear("blip.vision_proj", 256, WIDTH)
    linear("blip.text_proj", 256, TEXT)
    for place, (of, to) in {0: (TEXT, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}.items():
        linear(f"mlp.layers.{place}", to, of)
    return shapes


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    found = {}
    for name, shape in official_shapes().items():
        if name.endswith("position_ids"):
            found[name] = torch.arange(48)[None]
        elif "norm" in name.lower():
            found[name] = torch.randn(shape) * 0.1 + (1.0 if name.endswith("weight") else 0.0)
        else:
            found[name] = torch.randn(shape) * (1.5 / math.sqrt(shape[-1]) if len(shape) > 1 else 0.1)
    return found


@pytest.fixture(scope="module")
def directory(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("imagereward"), state)


def written(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save(state, folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(MED))
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return folder


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((32, 32), (50, 90), (41, 37))]


def ours(directory: Path, prompts: list[str], images: list[np.ndarray]) -> np.ndarray:
    scorer = METRICS["imagereward"].open(Weights({"imagereward": directory}))
    return np.asarray(scorer.score(scorer.prepare(images), prompts, None))


# The official arithmetic, one picture and prompt at a time.


def official(state: dict[str, torch.Tensor], prompt: str, picture: np.ndarray) -> float:
    """ImageReward.score: models/BLIP/vit.py, med.py (without a causal mask) and the linear head."""
    w = {k: v.double() for k, v in state.items()}
    seen = eye(w, pixels(picture))
    ids = tokens(prompt)
    mask = torch.zeros(len(ids)).double().masked_fill(torch.tensor(ids) == 0, -1e9)
    bert = "blip.text_encoder"
    x = w[f"{bert}.embeddings.word_embeddings.weight"][ids] + w[f"{bert}.embeddings.position_embeddings.weight"][: len(ids)]
    x = normed(w, f"{bert}.embeddings.LayerNorm", x, 1e-12)
    for i in range(LAYERS):
        layer = f"{bert}.encoder.layer.{i}"
        for part, source, hidden in (("attention", None, mask), ("crossattention", seen, 0.0)):
            q, k, v = (
                linear(w, f"{layer}.{part}.self.{n}", x if n == "query" or source is None else source)
                for n in ("query", "key", "value")
            )
            mixed = linear(w, f"{layer}.{part}.output.dense", attention(q, k, v, HEADS, hidden))
            x = normed(w, f"{layer}.{part}.output.LayerNorm", mixed + x, 1e-12)
        wide = F.gelu(linear(w, f"{layer}.intermediate.dense", x))
        x = normed(w, f"{layer}.output.LayerNorm", linear(w, f"{layer}.output.dense", wide) + x, 1e-12)
    found = x[0]
    for place in (0, 2, 4, 6, 7):
        found = linear(w, f"mlp.layers.{place}", found)
    return float((found - 0.16717362830052426) / 1.0333394966054072)


def eye(w: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    name = "blip.visual_encoder"
    patches = F.conv2d(image[None], w[f"{name}.patch_embed.proj.weight"], w[f"{name}.patch_embed.proj.bias"], stride=PATCH)
    x = torch.cat([w[f"{name}.cls_token"][0], patches[0].flatten(1).T]) + w[f"{name}.pos_embed"][0]
    for i in range(DEPTH):
        block = f"{name}.blocks.{i}"
        q, k, v = linear(w, f"{block}.attn.qkv", normed(w, f"{block}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + linear(w, f"{block}.attn.proj", attention(q, k, v, WIDTH // 64, 0.0))
        wide = F.gelu(linear(w, f"{block}.mlp.fc1", normed(w, f"{block}.norm2", x, 1e-6)))
        x = x + linear(w, f"{block}.mlp.fc2", wide)
    return normed(w, f"{name}.norm", x, 1e-6)


def linear(w: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def normed(w: dict[str, torch.Tensor], name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, hidden: torch.Tensor | float) -> torch.Tensor:
    q, k, v = (t.reshape(len(t), heads, -1).transpose(0, 1) for t in (q, k, v))
    weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + hidden).softmax(-1)
    return (weights @ v).transpose(0, 1).flatten(1)


def pixels(picture: np.ndarray) -> torch.Tensor:
    """Resize of the shorter side (bicubic, by PIL), centre crop, ToTensor, Normalize."""
    image = Image.fromarray(picture)
    width, height = image.size
    short = min(width, height)
    image = image.resize((int(SIDE * width / short), int(SIDE * height / short)), Image.Resampling.BICUBIC)
    left, top = round((image.width - SIDE) / 2), round((image.height - SIDE) / 2)
    x = torch.from_numpy(np.array(image.crop((left, top, left + SIDE, top + SIDE)))).double().permute(2, 0, 1) / 255
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return (x - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(deviation).double().view(3, 1, 1)


def tokens(prompt: str) -> list[int]:
    """bert-base-uncased: lower case without accents, punctuation apart, the longest pieces first; cut and padded to 35."""
    plain = prompt.lower().replace("é", "e").replace(",", " , ")
    pieces = []
    for word in plain.split():
        while word:
            cut = next(n for n in range(len(word), 0, -1) if word[:n] in WORDS)
            pieces.append(word[:cut])
            word = "##" + word[cut:] if cut < len(word) else ""
    pieces = ["[CLS]", *pieces[:33], "[SEP]"]
    return [WORDS.index(p) for p in pieces] + [0] * (35 - len(pieces))


def test_the_reward_is_that_of_the_official_arithmetic(state: dict[str, torch.Tensor], directory: Path) -> None:
    expected = [official(state, p, i) for p, i in zip(PROMPTS, pictures(), strict=True)]
    assert np.ptp(expected) > 0.1  # the weights are not such that everything gives the same
    assert ours(directory, PROMPTS, pictures()) == pytest.approx(expected, abs=1e-4)


def test_picture_and_prompt_both_decide_the_reward(directory: Path) -> None:
    one, other, _ = pictures()
    found = ours(directory, [PROMPTS[0], PROMPTS[1], PROMPTS[0]], [one, one, other])
    assert abs(found[0] - found[1]) > 1e-3
    assert abs(found[0] - found[2]) > 1e-3


def test_a_directory_without_the_weights_says_which_and_where_from(tmp_path: Path) -> None:
    with pytest.raises(
        MetricError, match=r"has no ImageReward.pt and no med_config.json \(got '.*'\); put both there from http"
    ):
        METRICS["imagereward"].open(Weights({"imagereward": tmp_path}))


def test_a_file_that_was_cut_short_is_an_error_for_the_user(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    whole = written(tmp_path, state) / "ImageReward.pt"
    whole.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(MetricError, match=r"^imagereward: ImageReward.pt is not ImageReward-v1.0's \(.*; download it again"):
        METRICS["imagereward"].open(Weights({"imagereward": tmp_path}))


def test_another_models_weights_are_refused_by_their_name(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    written(tmp_path, {**state, "blip.itm_head.weight": torch.zeros(2, TEXT)})
    with pytest.raises(MetricError, match=r"no place for the weight blip.itm_head.weight"):
        METRICS["imagereward"].open(Weights({"imagereward": tmp_path}))


def test_a_weight_that_is_missing_is_refused(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    written(tmp_path, {k: v for k, v in state.items() if k != "mlp.layers.7.bias"})
    with pytest.raises(MetricError, match=r"is not ImageReward-v1\.0's"):
        METRICS["imagereward"].open(Weights({"imagereward": tmp_path}))


def test_without_a_vocabulary_and_a_network_the_tokenizer_is_asked_for(
    state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (written(tmp_path, state) / "vocab.txt").unlink()
    with pytest.raises(MetricError, match=r"tokenizer is not on this machine .*google-bert/bert-base-uncased.*vocab.txt into"):
        METRICS["imagereward"].open(Weights({"imagereward": tmp_path}))
