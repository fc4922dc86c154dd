"""A model that turns pictures, and texts where it is a CLIP, into embeddings; shared by the metrics that use the same one."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import is_
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffopt.errors import MetricError, pass_on
from diffopt.metrics.weight_files import OPEN_CLIP, lacking

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass
class Encoder:
    """Embeddings of pictures and texts. The last batch of each is kept: several metrics and models ask for the same."""

    prepare: "Callable[[list[np.ndarray]], Iterable[Tensor]]"
    """Pictures, uint8 [height, width, 3] each, as the model takes them, float [3, side, side] each."""
    embed: "Callable[[Tensor], Tensor]"
    """[n, 3, side, side] -> [n, d]."""
    read: "Callable[[list[str]], Tensor] | None"
    """n texts -> [n, d]; None of a model that reads none."""
    device: str
    _pictures: "tuple[list[Any], Tensor] | None" = field(default=None, repr=False)
    _texts: "tuple[list[str], Tensor] | None" = field(default=None, repr=False)

    def pictures(self, prepared: list[Any]) -> "Tensor":
        """[n, d], as the model gives them."""
        import torch

        known = self._pictures[0] if self._pictures else []
        same = len(known) == len(prepared) and all(map(is_, known, prepared))
        if self._pictures is None or not same:
            with torch.inference_mode():
                self._pictures = prepared, self.embed(torch.stack(prepared).to(self.device)).float()
        return self._pictures[1]

    def texts(self, texts: list[str]) -> "Tensor":
        """[n, d]. Raises MetricError where the model reads no text."""
        import torch

        if self.read is None:
            raise MetricError("clip: the model has no text encoder (got one of pictures alone); give a CLIP model")
        if self._texts is None or self._texts[0] != texts:
            with torch.inference_mode():
                self._texts = [*texts], self.read(texts).float()
        return self._texts[1]


def load(path: Path, device: str) -> Encoder:
    """A transformers CLIPModel, an open_clip checkpoint, or any of transformers' image models, from their directory.

    Raises MetricError for what is none of these.
    """
    try:
        config = json.loads((path / "config.json").read_text()) if (path / "config.json").is_file() else {}
        if config.get("model_type") == "clip":
            return _clip(path, device)
        if (path / OPEN_CLIP).is_file():
            return _open_clip(path, device)
        if config:
            return _image_model(path, device)
    except Exception as e:  # transformers, open_clip and safetensors each have errors of their own
        pass_on(e)
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:160]
        raise MetricError(f"{path.name}: cannot be loaded as a model of pictures ({reason}); download it again") from None
    raise MetricError(f"{path.name}: {lacking('features', path)}")


def _prepared(processor: Any, pictures: "list[np.ndarray]") -> "Tensor":
    """By an image processor of transformers. A view with the channels first is what it makes of a picture by a copy."""
    import torch

    views = [torch.from_numpy(p).permute(2, 0, 1) for p in pictures]
    return processor(views, return_tensors="pt", input_data_format="channels_first")["pixel_values"]  # type: ignore[no-any-return]


def _clip(path: Path, device: str) -> Encoder:
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(path).eval().to(device), CLIPProcessor.from_pretrained(path)
    longest = model.config.text_config.max_position_embeddings

    def prepare(pictures: "list[np.ndarray]") -> "Tensor":
        return _prepared(processor.image_processor, pictures)

    def embed(pixels: "Tensor") -> "Tensor":
        return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)  # type: ignore[no-any-return]

    def read(texts: list[str]) -> "Tensor":
        tokens = processor.tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        return model.text_projection(model.text_model(**tokens.to(device)).pooler_output)  # type: ignore[no-any-return]

    return Encoder(prepare, embed, read, device)


def _open_clip(path: Path, device: str) -> Encoder:
    import open_clip
    from PIL import Image

    name = f"local-dir:{path}"
    model, _, transform = open_clip.create_model_and_transforms(name, device=device)
    tokenizer = open_clip.get_tokenizer(name)
    model.eval()

    def prepare(pictures: "list[np.ndarray]") -> "list[Tensor]":
        return [transform(Image.fromarray(p)) for p in pictures]

    def read(texts: list[str]) -> "Tensor":
        return model.encode_text(tokenizer(texts).to(device))  # type: ignore[no-any-return]

    return Encoder(prepare, model.encode_image, read, device)


def _image_model(path: Path, device: str) -> Encoder:
    from transformers import AutoImageProcessor, AutoModel

    model, processor = AutoModel.from_pretrained(path).eval().to(device), AutoImageProcessor.from_pretrained(path)

    def prepare(pictures: "list[np.ndarray]") -> "Tensor":
        return _prepared(processor, pictures)

    def embed(pixels: "Tensor") -> "Tensor":
        return model(pixel_values=pixels).pooler_output.flatten(1)  # type: ignore[no-any-return]

    return Encoder(prepare, embed, None, device)
