"""Released weights on the hub: what belongs to a model, its licence, and fetching it all into one folder.

Listing and fetching are ``huggingface_hub``'s. No torch here.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import unknown
from openhunyuan.base.require import require
from openhunyuan.models.zoo import file_sha256

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


@dataclass(frozen=True)
class _File:
    """A file of a repository: its name there, the commit, where it goes, its bytes and, for large ones, its SHA-256."""

    repository: str
    commit: str
    name: str
    path: Path
    size: int
    sha256: str | None

    @property
    def is_here(self) -> bool:
        """Whether it has been fetched: it takes its place only when it is whole."""
        return self.path.is_file() and self.path.stat().st_size == self.size

    @property
    def partial(self) -> Path:
        """Where it grows; of another commit or content it would be another file."""
        mark = (self.sha256 or self.commit)[:16]
        return self.path.with_name(f".{self.path.name}.{mark}.incomplete")


class Download:
    """A model on its way from the hub to a folder.

    The library's own downloads throw half a file away when the process ends, so files are fetched one by one with its
    parts below them: a file grows beside its place, goes on where it stopped, and is moved there when it is whole.

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
        if not self._licence:
            repository = self.model.licence
            with tempfile.TemporaryDirectory() as folder:
                files = self._files(Repository(repository, patterns=("LICENSE*",)), Path(folder), None)
                if not files:
                    raise UserError(
                        f"{repository} shows no licence, so nothing is fetched; look at its page on the hub."
                    )
                self._fetch(files[0])
                self._licence = files[0].path.read_text(encoding="utf-8", errors="replace")
        return self._licence

    def check(self) -> int:
        """Bytes that are still to be fetched. Raises ``UserError`` when they do not fit, or nothing matches."""
        left = [file for file in self._all() if not file.is_here]
        wanted = sum(file.size - (file.partial.stat().st_size if file.partial.exists() else 0) for file in left)
        folder = self.target.absolute()
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if free < wanted:
            raise UserError(f"{self.target} needs {wanted / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free there.")
        return wanted

    def run(self) -> None:
        """Fetch what is not there yet, with progress bars, after the licence."""
        text = self.licence()
        for file in self._all():
            if not file.is_here:
                self._fetch(file)
        place = self.target / "LICENSE.txt"
        if not place.exists():
            # The licence asks that a copy of it goes with the weights.
            place.write_text(text, encoding="utf-8")

    def _all(self) -> list[_File]:
        out: list[_File] = []
        for number, part in enumerate(self.model.parts):
            files = self._files(part, self.target / part.folder, None if number else self.revision)
            if not files:
                raise UserError(
                    f"{part.name} has none of the files {', '.join(part.patterns)}; is it the right revision?"
                )
            out += files
        return out

    def _files(self, part: Repository, folder: Path, revision: str | None) -> list[_File]:
        from huggingface_hub.utils import filter_repo_objects

        api = self._hub.HfApi(endpoint=self.endpoint)
        with _explained(part.name):
            commit = api.repo_info(part.name, revision=revision).sha
            entries = [
                entry
                for entry in api.list_repo_tree(part.name, recursive=True, revision=commit)
                if hasattr(entry, "size")
            ]
        chosen = filter_repo_objects(entries, allow_patterns=list(part.patterns), key=lambda entry: entry.path)
        out: list[_File] = []
        for entry in chosen:
            place = folder / entry.path
            if not place.resolve().is_relative_to(folder.resolve()):
                raise UserError(
                    f"{part.name} has the file {entry.path}, which lies outside of its folder; not fetched."
                )
            lfs = entry.lfs.sha256 if entry.lfs else None
            out.append(_File(part.name, commit, entry.path, place, entry.size, lfs))
        return out

    def _fetch(self, file: _File) -> None:
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        url = self._hub.hf_hub_url(file.repository, file.name, revision=file.commit, endpoint=self.endpoint)
        headers = build_hf_headers()
        partial = file.partial
        partial.parent.mkdir(parents=True, exist_ok=True)
        with _explained(file.repository):
            place = self._hub.get_hf_file_metadata(url, endpoint=self.endpoint).location
            if urlparse(place).netloc != urlparse(url).netloc:
                headers.pop("authorization", None)  # The token is for the hub, not for where it stores files.
            with partial.open("r+b" if partial.exists() else "w+b") as out:
                start = out.seek(0, 2)
                if start > file.size:
                    start = out.truncate(0)
                    out.seek(0)
                http_get(
                    place,
                    out,
                    resume_size=start,
                    headers=headers,
                    expected_size=file.size,
                    displayed_filename=file.name,
                )
        if file.sha256 is not None and file_sha256(partial) != file.sha256:
            partial.unlink()
            raise UserError(
                f"{file.name} did not arrive as it left the hub (its SHA-256 differs); run the command again."
            )
        partial.replace(file.path)


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """The hub's errors in one sentence; others (the disk, a mistake of ours) go on as they are."""
    try:
        yield
    except Exception as error:
        sentence = _sentence(error, repository)
        if sentence is None:
            raise
        raise UserError(sentence) from None


def _sentence(error: Exception, repository: str) -> str | None:
    """What went wrong with the hub; None for what is not the hub's."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"{repository} asks for an account: accept its terms on the hub, then set HF_TOKEN."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"The hub shows no repository {repository}; was it renamed, or does it need HF_TOKEN?"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no such revision; leave --revision out, or take one from its page on the hub."
    network = isinstance(error, errors.HfHubHTTPError) or type(error).__module__.startswith("httpx")
    if not network and not (isinstance(error, OSError) and error.errno is None):
        return None
    what = (str(error).splitlines() or ["no answer"])[0]
    return (
        f"{repository} could not be fetched ({what}); check the network and run the command again: "
        "it goes on where it stopped."
    )
