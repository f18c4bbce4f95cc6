"""A model that sees in a local folder, through transformers: safetensors only, no code from the folder, no network.

Any folder that `AutoModelForImageTextToText` knows (Qwen2-VL, Qwen2.5-VL, Qwen3-VL, ...). It answers greedily: the same
frames, the same answer. Frames are shown as pictures in order, which every such model takes, and not as a video.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from openhunyuan.base.device import pick_device, pick_dtype
from openhunyuan.base.errors import UserError
from openhunyuan.caption.vision import Message
from openhunyuan.curate.clip import file_sha256

MAX_NEW_TOKENS = 1024
_SAFE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def check_folder(folder: Path | str) -> Path:
    """The folder, after checking that it holds a config.json and safetensors. Opens no weight."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"The captioner folder {folder} does not exist.")
    if not (folder / "config.json").is_file():
        raise UserError(f"The captioner folder {folder} has no config.json; it must be a Hugging Face model folder.")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"The captioner folder {folder} has no .safetensors weights; pickle files are not read.")
    return folder


def folder_name(folder: Path) -> str:
    """The folder's own name and 16 digits of the hash of its weights: what captions are signed with."""
    digests = [file_sha256(path) for path in sorted(folder.glob("*.safetensors"))]
    return f"{folder.resolve().name}@{hashlib.sha256(''.join(digests).encode()).hexdigest()[:16]}"


class LocalVision:
    """A vision-language model and its processor.

    Args:
        model: of `AutoModelForImageTextToText`.
        processor: its processor, with a chat template.
        timeout: seconds for one whole answer.
    """

    def __init__(self, model: Any, processor: Any, timeout: float = 120.0) -> None:
        self.model, self.processor, self.timeout = model, processor, timeout

    @classmethod
    def from_folder(cls, folder: Path | str, device: Any = None, dtype: Any = None, timeout: float = 120.0) -> Self:
        """Load a folder. `UserError` unless it holds such a model, whole, with a processor and a chat template."""
        from safetensors import SafetensorError
        from transformers import AutoConfig, AutoModelForImageTextToText

        auto: Any = AutoModelForImageTextToText
        path = check_folder(folder)
        where = device if isinstance(device, torch.device) else pick_device(device)
        try:
            config = AutoConfig.from_pretrained(str(path), **_SAFE)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"The config.json of the captioner folder {path} cannot be used: {error}") from None
        if type(config) not in auto._model_mapping:
            raise UserError(
                f"The captioner folder {path} holds a {config.model_type}, which transformers does not know as a model "
                "of pictures and text."
            )
        processor = load_processor(path, config)
        try:
            model, report = auto.from_pretrained(
                str(path),
                dtype=pick_dtype(dtype, where),
                use_safetensors=True,
                output_loading_info=True,
                attn_implementation="sdpa",
                **_SAFE,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"The weights of the captioner in {path} cannot be read: {error}") from None
        if missing := sorted(report["missing_keys"]):
            raise UserError(
                f"The weights of the captioner in {path} lack {len(missing)} tensors, the first is {missing[0]}."
            )
        return cls(model.to(where).eval().requires_grad_(False), processor, timeout)

    @torch.inference_mode()
    def ask(self, messages: list[Message]) -> str:
        """The answer to a conversation. Raises `UserError` if it does not fit, or does not end in time."""
        from PIL import Image

        pictures = [
            Image.fromarray(part) for message in messages for part in message["content"] if isinstance(part, np.ndarray)
        ]
        text = self.processor.apply_chat_template(
            [{**message, "content": _parts(message["content"])} for message in messages],
            tokenize=False,
            add_generation_prompt=True,
        )
        inputs = self.processor(text=[text], images=pictures or None, return_tensors="pt").to(self.model.device)
        length = inputs["input_ids"].shape[1]
        config = self.model.config.get_text_config()
        budget = min(MAX_NEW_TOKENS, (getattr(config, "max_position_embeddings", None) or 2**31) - length)
        if budget < 1:
            raise UserError(f"The frames and the instruction are {length} tokens, more than the captioner reads")
        start = time.monotonic()
        try:
            out = self.model.generate(
                **inputs,
                max_new_tokens=budget,
                max_time=self.timeout,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=self._ends()[0],
            )[0, length:].tolist()
        except torch.OutOfMemoryError:
            raise UserError("The device's memory does not hold the frames; show fewer or smaller ones") from None
        if not out or out[-1] not in self._ends():
            if time.monotonic() - start >= self.timeout:
                raise UserError(f"The captioner did not answer within {self.timeout:g} s")
            raise UserError(f"The captioner's answer did not end within {budget} tokens")
        return self.processor.tokenizer.decode(out, skip_special_tokens=True)

    def _ends(self) -> list[int]:
        ends = self.model.generation_config.eos_token_id
        if ends is None:
            ends = self.processor.tokenizer.eos_token_id
        return [ends] if isinstance(ends, int) else list(ends)


def _parts(content: str | list[Any]) -> list[dict[str, str]]:
    parts = [content] if isinstance(content, str) else content
    return [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]


def load_processor(folder: Path, config: Any) -> Any:
    """The processor of a folder.

    Many processors have a part for videos that needs torchvision. Without torchvision the same processor is put
    together without that part, which pictures do not use.
    """
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    try:
        try:
            processor = AutoProcessor.from_pretrained(str(folder), **_SAFE)
        except ImportError:
            kind: Any = PROCESSOR_MAPPING[type(config)]

            class Stills(kind):
                """Checks its parts, but for one that is left out on purpose."""

                def check_argument_for_proper_class(self, name: str, part: Any) -> Any:
                    return None if part is None else super().check_argument_for_proper_class(name, part)

            tokenizer = AutoTokenizer.from_pretrained(str(folder), **_SAFE)
            pictures = AutoImageProcessor.from_pretrained(str(folder), **_SAFE)
            template = _template(folder) or tokenizer.chat_template
            processor = Stills(
                image_processor=pictures, tokenizer=tokenizer, video_processor=None, chat_template=template
            )
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"The processor of the captioner folder {folder} cannot be loaded: {reason}") from None
    if not processor.chat_template:
        raise UserError(f"The captioner folder {folder} has no chat template; use one of an instructed model.")
    return processor


def _template(folder: Path) -> str | None:
    """A chat template beside the weights, in either of its two file forms."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").is_file():
        return json.loads((folder / "chat_template.json").read_text(encoding="utf-8")).get("chat_template")
    return None
