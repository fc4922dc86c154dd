"""ImageReward: what people would think of a picture for its prompt (Xu et al. 2023), ImageReward-v1.0.

Range about -2.5 to 2.5 (deviations from the mean over its training pictures); higher is better. Weights: `ImageReward.pt`
(1.8 GB) and `med_config.json`, hub id THUDM/ImageReward or a directory that holds them; the tokenizer is
bert-base-uncased, from a `vocab.txt` beside them or from the hub.

The official network, BLIP (ViT-L/16, BERT with cross-attention) and a linear head, on transformers' BLIP classes: the
package `image-reward` cannot be installed beside this stack. tests/test_imagereward.py compares the two's arithmetic.
Preprocessing of the published numbers, and here: the shorter side resized to 224 pixels (bicubic, by PIL), centre crop,
RGB, scaled by 1/255, CLIP's mean and deviation; the prompt cut or padded to 35 tokens of bert-base-uncased.
"""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffopt.errors import MetricError, pass_on
from diffopt.metrics.metric import Metric, Scorer, Weights
from diffopt.metrics.weight_files import BLIP, IMAGEREWARD, lacking
from diffopt.store import hub

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

FILE, CONFIG, VOCABULARY = IMAGEREWARD, BLIP, "vocab.txt"
TOKENIZER = "google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594"
LENGTH = 35  # tokens
HEAD_WIDTH = 64  # channels of an attention head, of BLIP's base and large vision transformers alike
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072  # of the training pictures' rewards: ImageReward.py
PIXEL_MEAN, PIXEL_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

NAMES = [
    (r"blip\.visual_encoder\.cls_token", "vision.embeddings.class_embedding"),
    (r"blip\.visual_encoder\.pos_embed", "vision.embeddings.position_embedding"),
    (r"blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision.encoder.layers.\1.layer_norm\2."),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"vision.encoder.layers.\1.self_attn.qkv."),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision.encoder.layers.\1.self_attn.projection."),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision.encoder.layers.\1.mlp."),
    (r"blip\.text_encoder\.", "text."),
    (r"mlp\.layers\.", "head."),
]
"""Official names of the state dict, and ours: transformers'."""
UNUSED = re.compile(r"blip\.(vision_proj|text_proj)\.|.*position_ids$")


class ImageReward(Scorer):
    def __init__(self, weights: Weights):
        path = weights.directory("imagereward")
        if reason := lacking("imagereward", path):
            raise MetricError(f"imagereward: {reason}")
        self.device = weights.device
        self.tokenizer = _tokenizer(path)
        self.model, self.side = load(path)
        self.model.to(self.device)

    def prepare(self, pictures: "list[np.ndarray]") -> "list[Tensor]":
        """Float [3, side, side] each."""
        from PIL import Image
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2.functional import center_crop, normalize, pil_to_tensor, resize

        images = [resize(Image.fromarray(p), [self.side], InterpolationMode.BICUBIC) for p in pictures]
        tensors = [pil_to_tensor(center_crop(i, [self.side])).float() / 255 for i in images]
        return [normalize(t, PIXEL_MEAN, PIXEL_DEVIATION) for t in tensors]

    def score(self, pictures: list[Any], prompts: list[str], references: list[Any] | None) -> "np.ndarray":
        import torch

        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
        with torch.inference_mode():
            pixels = torch.stack(pictures).to(self.device)
            reward = rewards(self.model, pixels, tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device))
        return reward.cpu().numpy()


def rewards(model: Any, pixels: "Tensor", ids: "Tensor", mask: "Tensor") -> "Tensor":
    """[n], of `pixels` [n, 3, side, side] and tokens [n, length]: the head reads the text's first token, which saw both."""
    seen = model.vision(pixel_values=pixels).last_hidden_state
    read = model.text(
        input_ids=ids,
        attention_mask=mask,
        encoder_hidden_states=seen,
        encoder_attention_mask=ids.new_ones(seen.shape[:-1]),
        is_decoder=False,  # every token sees every other
    )
    return (model.head(read.last_hidden_state[:, 0].float())[:, 0] - MEAN) / DEVIATION  # type: ignore[no-any-return]


def load(path: Path) -> tuple[Any, int]:
    """The network with the weights of `path`, and the side of its pictures in pixels. Sizes are those of the weights.

    Raises MetricError where the file is not ImageReward's.
    """
    import torch

    try:
        official = torch.load(path / FILE, map_location="cpu", weights_only=True, mmap=True)
        named = {_ours(name): tensor for name, tensor in official.items() if not UNUSED.match(name)}
        model, side = _network(named, json.loads((path / CONFIG).read_text()))
        model.load_state_dict(named)
    except Exception as e:  # a file that is cut short, another model's, or no checkpoint: each fails in its own way
        pass_on(e)
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:160]
        raise MetricError(
            f"imagereward: {FILE} is not ImageReward-v1.0's ({reason}) (got {str(path)!r}); download it again"
        ) from None
    return model.eval(), side


def _ours(name: str) -> str:
    for official, ours in NAMES:
        found, count = re.subn(f"^{official}", ours, name)
        if count:
            return found
    raise KeyError(f"no place for the weight {name}")


def _network(weights: "dict[str, Tensor]", med: dict[str, Any]) -> tuple[Any, int]:
    from torch import nn
    from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    width, _, patch, _ = weights["vision.embeddings.patch_embedding.weight"].shape
    side = patch * round((weights["vision.embeddings.position_embedding"].shape[1] - 1) ** 0.5)
    vision = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=weights["vision.encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_depth(weights, "vision.encoder.layers"),
        num_attention_heads=max(width // HEAD_WIDTH, 1),
        image_size=side,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    text = BlipTextConfig(
        vocab_size=weights["text.embeddings.word_embeddings.weight"].shape[0],  # 30,524: two tokens more than the file says
        encoder_hidden_size=width,
        is_decoder=True,
        use_cache=False,
        **{
            k: med[k]
            for k in (
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "max_position_embeddings",
                "hidden_act",
                "layer_norm_eps",
            )
        },
    )
    model = nn.Module()
    model.vision = BlipVisionModel(vision)
    model.text = BlipTextModel(text, add_pooling_layer=False)
    widths = [text.hidden_size, 1024, 128, 64, 16, 1]
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    # Positions 1, 3 and 5 are the dropouts, which count in the weights' names.
    model.head = nn.Sequential(layers[0], nn.Identity(), layers[1], nn.Identity(), layers[2], nn.Identity(), *layers[3:])
    return model, side


def _depth(weights: "dict[str, Tensor]", prefix: str) -> int:
    return 1 + max(int(name[len(prefix) + 1 :].split(".")[0]) for name in weights if name.startswith(prefix))


def _tokenizer(path: Path) -> Any:
    """Of a file: where a vocabulary cannot be had, `from_pretrained` of transformers 5 makes an empty one without a word."""
    from transformers import BertTokenizer

    vocabulary = path / VOCABULARY
    if not vocabulary.is_file():
        name, revision = TOKENIZER
        try:
            vocabulary = hub.file(name, VOCABULARY, "model", revision)
        except Exception as e:  # the hub client has many errors
            raise MetricError(
                f"imagereward: its tokenizer is not on this machine ({hub.refusal(e).what}) (got {name}); "
                f"put that repository's {VOCABULARY} into {path}"
            ) from None
    return BertTokenizer(str(vocabulary))


METRIC = Metric("imagereward", "ImageReward", "", "higher", "picture", ImageReward, needs=("imagereward",), of_text=True)
