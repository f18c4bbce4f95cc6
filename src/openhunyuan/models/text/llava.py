"""Pictures for the language model: LLaVA's vision tower and projector (release fact D.4)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import read_json
from openhunyuan.models.text.folder import build, check_model_folder, fill, load_config, stored_weights

WHAT = "LLaVA model"
PREPARATION_FILE = "preprocessor_config.json"

_VISION_KEY = re.compile(r"(?:model\.)?vision_tower\.(?:vision_model\.)?(.+)")
_PROJECTOR_KEY = re.compile(r"(?:model\.)?multi_modal_projector\.(.+)")


def is_llava(folder: Path | str) -> bool:
    """Whether a model folder holds a LLaVA, by its config.json."""
    path = Path(folder) / "config.json"
    return path.is_file() and read_json(path).get("model_type") == "llava"


@dataclass(frozen=True)
class ImagePreparation:
    """How a picture becomes the vision tower's input.

    Attributes:
        shortest: the shorter side after resizing (bicubic), pixels.
        crop: (height, width) of the centre that is kept.
        mean, std: of the three channels, for values in 0..1.
    """

    shortest: int
    crop: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_folder(cls, folder: Path) -> ImagePreparation:
        """Read preprocessor_config.json of the model folder, or of ``image_processor`` beside it (diffusers)."""
        places = (folder / PREPARATION_FILE, folder.parent / "image_processor" / PREPARATION_FILE)
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise UserError(f"The {WHAT} in {folder} has no {PREPARATION_FILE}; copy it from the released folder.")
        values = read_json(path)
        try:
            size, crop = values["size"], values["crop_size"]
            shortest = size if isinstance(size, int) else size["shortest_edge"]
            crop = (crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"])
            mean, std = tuple(map(float, values["image_mean"])), tuple(map(float, values["image_std"]))
            return cls(int(shortest), (int(crop[0]), int(crop[1])), mean, std)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is not the preparation of a CLIP picture (size, crop_size, image_mean, image_std): {error}."
            ) from None

    def __call__(self, image: Image.Image) -> Tensor:
        """An RGB picture of any size → [3, H, W] float32, normalised."""
        width, height = image.size
        scale = self.shortest / min(width, height)
        short, long = self.shortest, int(self.shortest * max(width, height) / min(width, height))
        size = (short, long) if width <= height else (long, short)
        resized = image if scale == 1 else image.resize(size, Image.Resampling.BICUBIC)
        top, left = (resized.height - self.crop[0]) // 2, (resized.width - self.crop[1]) // 2
        # A crop larger than the picture is black outside it, as PIL fills it.
        cropped = resized.crop((left, top, left + self.crop[1], top + self.crop[0]))
        values = torch.from_numpy(np.array(cropped, dtype=np.uint8)).permute(2, 0, 1).float() / 255
        return (values - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]


class Projector(nn.Module):
    """Two linears from the vision tower's width to the language model's; parameter names are LLaVA's."""

    def __init__(self, vision_width: int, text_width: int, bias: bool, activation: str) -> None:
        super().__init__()
        from transformers.activations import ACT2FN

        self.linear_1 = nn.Linear(vision_width, text_width, bias=bias)
        self.act = ACT2FN[activation]
        self.linear_2 = nn.Linear(text_width, text_width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.act(self.linear_1(x)))


class ImageEncoder:
    """A picture → the N tokens that stand for it in the language model (576 of 336x336 in 14x14 patches)."""

    def __init__(
        self, tower: nn.Module, projector: nn.Module, preparation: ImagePreparation, image_token: int, drop_class: bool
    ) -> None:
        self.tower, self.projector, self.preparation = tower, projector, preparation
        self.image_token = image_token
        self.drop_class = drop_class

    @classmethod
    def from_folder(
        cls, folder: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> ImageEncoder:
        """Load the vision tower (only the layers that are read) and the projector of a LLaVA folder."""
        from transformers import CLIPVisionModel

        path = check_model_folder(Path(folder), WHAT)
        config: Any = load_config(path, WHAT)
        if config.model_type != "llava" or config.vision_config.model_type != "clip_vision_model":
            raise UserError(f"The model in {path} is not a LLaVA with a CLIP vision tower, which reads pictures.")
        vision, layer = config.vision_config, config.vision_feature_layer
        layers = vision.num_hidden_layers
        used = layers + 1 + layer if isinstance(layer, int) and layer < 0 else layer
        if not isinstance(used, int) or not 0 <= used <= layers:
            raise UserError(f"vision_feature_layer is {layer} in {path}, but the vision tower has {layers} layers.")
        vision.num_hidden_layers = used

        stored = stored_weights(path, WHAT)
        tower = build(lambda: CLIPVisionModel._from_config(vision, attn_implementation="sdpa"))
        tower.post_layernorm = nn.Identity()  # Only the pooled vector passes it.
        found = {m[1]: tensor for name, tensor in stored.items() if (m := _VISION_KEY.fullmatch(name))}
        fill(tower, found, f"the vision tower in {path}", device, dtype)
        projector = build(
            lambda: Projector(
                vision.hidden_size,
                config.text_config.hidden_size,
                bool(getattr(config, "multimodal_projector_bias", True)),
                config.projector_hidden_act,
            )
        )
        found = {m[1]: tensor for name, tensor in stored.items() if (m := _PROJECTOR_KEY.fullmatch(name))}
        fill(projector, found, f"the projector in {path}", device, dtype)
        token = getattr(config, "image_token_id", None)
        token = config.image_token_index if token is None else token
        drop_class = config.vision_feature_select_strategy == "default"
        return cls(tower, projector, ImagePreparation.from_folder(path), int(token), drop_class)

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures of any sizes → [B, N, D]. A picture that appears twice is encoded once."""
        distinct = list({id(image): image for image in images}.values())
        weight = next(self.tower.parameters())
        pixels = torch.stack([self.preparation(image) for image in distinct]).to(weight.device, weight.dtype)
        states = self.tower(pixel_values=pixels).last_hidden_state
        tokens = self.projector(states[:, 1:] if self.drop_class else states)
        order = {id(image): index for index, image in enumerate(distinct)}
        return tokens[[order[id(image)] for image in images]]
