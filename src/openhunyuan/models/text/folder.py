"""Opening a Hugging Face model folder: safetensors only, no remote code, no network, one sentence when it is broken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openhunyuan.base.errors import UserError

# Read these, never the network; code that comes with a checkpoint is never run.
SAFE_OPTIONS: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def check_model_folder(folder: Path, what: str) -> Path:
    """The folder itself, after checking that it holds a config.json and safetensors weights."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"The {what} folder {folder} does not exist.")
    if not (folder / "config.json").is_file():
        raise UserError(f"The {what} folder {folder} has no config.json; it must be a Hugging Face model folder.")
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"The {what} folder {folder} has no .safetensors weights; pickle files are not read, convert them."
        )
    return folder


def load_config(folder: Path, what: str) -> Any:
    """The ``transformers`` config of a folder."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), **SAFE_OPTIONS)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"The config.json of the {what} folder {folder} cannot be used: {error}") from error


def load_tokenizer(folder: Path, sibling: str, what: str) -> Any:
    """The fast tokenizer of a model folder.

    It lies in the folder itself (official layout) or in the folder ``sibling`` beside it (diffusers layout).
    """
    from transformers import AutoTokenizer

    places = (Path(folder), Path(folder).parent / sibling)
    for place in places:
        if (place / "tokenizer.json").is_file() or (place / "tokenizer_config.json").is_file():
            try:
                with quiet_transformers():
                    tokenizer = AutoTokenizer.from_pretrained(str(place), **SAFE_OPTIONS)
            except (OSError, ValueError, KeyError) as error:
                raise UserError(f"The tokenizer of the {what} in {place} cannot be loaded: {error}") from error
            if not tokenizer.is_fast:
                raise UserError(
                    f"The tokenizer of the {what} in {place} has no tokenizer.json; save a fast tokenizer there."
                )
            return tokenizer
    raise UserError(f"No tokenizer of the {what} found in {places[0]} or {places[1]}.")


def load_weights(model_class: Any, folder: Path, config: Any, dtype: Any, what: str) -> Any:
    """A ``transformers`` model in eval mode, without gradients.

    Tensors of layers that ``config`` leaves out are not loaded; a tensor that it asks for must be there.
    """
    from safetensors import SafetensorError

    try:
        with quiet_transformers():
            model, report = model_class.from_pretrained(
                str(folder),
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                attn_implementation="sdpa",
                **SAFE_OPTIONS,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"The weights of the {what} in {folder} cannot be read: {error}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"The weights of the {what} in {folder} lack {len(missing)} tensors, the first is {missing[0]}."
        )
    return model.eval().requires_grad_(False)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the progress bars and the table of left-out layers: leaving layers out is what we want."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
