"""Released weights on the hub: what belongs to a model, its licence, and fetching it all into one folder.

Fetching is ``huggingface_hub``'s: it resumes, checks sizes, and keeps what is there. No torch here.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import unknown
from openhunyuan.base.require import require

TERRITORY = (
    "The Tencent Hunyuan Community Licence grants no rights in the European Union, the United Kingdom and South Korea: "
    "there these weights may not be used at all. Elsewhere, services with more than 100 million monthly users need "
    "Tencent's permission, and outputs may not be used to improve other AI models."
)
_TEXT = ("*.json", "*.txt", "*.model", "*.jinja")


@dataclass(frozen=True)
class Repository:
    """A part of a download.

    Attributes:
        name: owner/name on the hub.
        folder: below the target; "" is the target itself.
        patterns: which files.
    """

    name: str
    folder: str = ""
    patterns: tuple[str, ...] = ("*",)


@dataclass(frozen=True)
class Released:
    """A released model.

    Attributes:
        description: what it is.
        licence: the repository with the licence's text.
        parts: what is fetched; the first is the main repository.
    """

    description: str
    licence: str
    parts: tuple[Repository, ...]


_T2V, _I2V = "tencent/HunyuanVideo", "tencent/HunyuanVideo-I2V"
_LLAVA, _CLIP = "xtuner/llava-llama-3-8b-v1_1-transformers", "openai/clip-vit-large-patch14"
_SAFE = (*_TEXT, "*.safetensors")


def _official(folder: str, eight_bit: bool = False) -> tuple[str, ...]:
    stem = f"{folder}/transformers/mp_rank_00_model_states"
    weights = (f"{stem}_fp8.pt", f"{stem}_fp8_map.pt") if eight_bit else (f"{stem}.pt",)
    return (*weights, f"{folder}/vae/*", "LICENSE*", "Notice*")


def _texts(llava_folder: str) -> tuple[Repository, ...]:
    return (Repository(_LLAVA, llava_folder, _SAFE), Repository(_CLIP, "text_encoder_2", _SAFE))


RELEASED: dict[str, Released] = {
    "hunyuanvideo": Released(
        "Text-to-video 13B, diffusers folder with text encoders.",
        _T2V,
        (Repository("hunyuanvideo-community/HunyuanVideo"),),
    ),
    "hunyuanvideo-official": Released(
        "Text-to-video 13B, the official files with text encoders.",
        _T2V,
        (
            Repository(_T2V, patterns=_official("hunyuan-video-t2v-720p")),
            *_texts("text_encoder"),
        ),
    ),
    "hunyuanvideo-fp8": Released(
        "Text-to-video 13B, the official eight-bit files with text encoders.",
        _T2V,
        (
            Repository(_T2V, patterns=_official("hunyuan-video-t2v-720p", eight_bit=True)),
            *_texts("text_encoder"),
        ),
    ),
    "hunyuanvideo-i2v": Released(
        "Image-to-video 13B (token replace), diffusers folder with text encoders.",
        _I2V,
        (Repository("hunyuanvideo-community/HunyuanVideo-I2V"),),
    ),
    "hunyuanvideo-i2v-33ch": Released(
        "Image-to-video 13B (latent concat, the first release), diffusers folder with text encoders.",
        _I2V,
        (Repository("hunyuanvideo-community/HunyuanVideo-I2V-33ch"),),
    ),
    "hunyuanvideo-i2v-official": Released(
        "Image-to-video 13B, the official files with text encoders.",
        _I2V,
        (
            Repository(_I2V, patterns=_official("hunyuan-video-i2v-720p")),
            *_texts("text_encoder_i2v"),
        ),
    ),
}


def released(name: str) -> Released:
    """A released model by name. Raises ``UserError`` for another name, with the nearest."""
    if name not in RELEASED:
        raise UserError(unknown("model", name, RELEASED))
    return RELEASED[name]


class Download:
    """A model on its way from the hub to a folder.

    Args:
        model: what to fetch.
        target: the folder.
        revision: branch, tag or commit of the main repository.
        endpoint: the hub's address; None takes HF_ENDPOINT, or the library's.
    """

    def __init__(self, model: Released, target: Path, revision: str | None = None, endpoint: str | None = None) -> None:
        self.model = model
        self.target = target
        self.revision = revision
        self.endpoint = endpoint
        self._licence = ""
        self._hub: Any = require("huggingface_hub", "released")

    def licence(self) -> str:
        """The licence's text, fetched before anything else and kept as LICENSE.txt with the weights."""
        repository = self.model.licence
        with tempfile.TemporaryDirectory() as folder:
            self._asked(self._hub.snapshot_download, repository, local_dir=folder, allow_patterns=["LICENSE*"])
            files = sorted(Path(folder).glob("LICENSE*"))
            if not files:
                raise UserError(f"{repository} shows no licence, so nothing is fetched; look at its page on the hub.")
            text = files[0].read_text(encoding="utf-8", errors="replace")
        self._licence = text
        return text

    def check(self) -> int:
        """Bytes that are still to be fetched. Raises ``UserError`` when they do not fit, or nothing matches."""
        wanted = 0
        for number, part in enumerate(self.model.parts):
            files = self._snapshot(number, part, dry_run=True)
            if not files:
                raise UserError(
                    f"{part.name} has none of the files {', '.join(part.patterns)}; is it the right revision?"
                )
            wanted += sum(file.file_size for file in files if file.will_download)
        folder = self.target
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if free < wanted:
            raise UserError(f"{self.target} needs {wanted / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free there.")
        return wanted

    def run(self) -> None:
        """Fetch what is not there yet, with progress bars, after the licence; half a file is gone on with."""
        self._licence = self._licence or self.licence()
        for number, part in enumerate(self.model.parts):
            self._snapshot(number, part)
        licence = self.target / "LICENSE.txt"
        if not licence.exists():
            # The licence asks that a copy of it goes with the weights.
            licence.write_text(self._licence, encoding="utf-8")

    def _snapshot(self, number: int, part: Repository, **options: Any) -> Any:
        return self._asked(
            self._hub.snapshot_download,
            part.name,
            revision=None if number else self.revision,
            local_dir=self.target / part.folder,
            allow_patterns=list(part.patterns),
            **options,
        )

    def _asked(self, function: Any, repository: str, **options: Any) -> Any:
        """A call of the hub's library, its errors in one sentence."""
        from huggingface_hub import errors

        try:
            return function(repository, endpoint=self.endpoint, **options)
        except errors.GatedRepoError:
            raise UserError(
                f"{repository} asks for an account: accept its terms on the hub, then set HF_TOKEN."
            ) from None
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
            what = type(error).__name__.removesuffix("Error").removesuffix("NotFound").lower()
            raise UserError(f"The hub has no such {what} of {repository}; was it moved or renamed?") from None
        except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # The disk, not the hub.
            raise UserError(
                f"{repository} could not be fetched ({str(error).splitlines()[0] if str(error) else 'no answer'}); "
                "check the network and run the command again, it goes on where it stopped."
            ) from None
