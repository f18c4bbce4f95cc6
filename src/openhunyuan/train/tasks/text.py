"""Training the small text models: a Llama on prompts by next-token prediction, a CLIP on frames with their prompts.

Both are ordinary tasks of the one loop (``train.loop``). The data come as callables, so nothing here knows a data set.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from openhunyuan.models.text import tokenizer as tok
from openhunyuan.models.text.encoder import TextEncoder
from openhunyuan.models.text.folder import SAFE_OPTIONS, quiet_transformers
from openhunyuan.models.text.templates import PromptTemplate, TemplateSet, write_templates
from openhunyuan.train.config import BatchShape, OptimizerConfig, Stage, Strict, TrainConfig
from openhunyuan.train.estimate import Workload
from openhunyuan.train.loop import Batch, StepContext, Trainer

# As in the release: a system instruction, then the prompt as the user's turn. Short, because every state before the
# prompt is computed and then dropped.
TEMPLATE_TEXT = (
    f"{tok.HEADER_OPEN}system{tok.HEADER_CLOSE}\n\nDescribe:{tok.EOT}"
    f"{tok.HEADER_OPEN}user{tok.HEADER_CLOSE}\n\n{{}}{tok.EOT}"
)
ANSWER_TEXT = f"{tok.HEADER_OPEN}assistant{tok.HEADER_CLOSE}\n\n{{}}{tok.EOT}"
_TEMPLATE_WORDS = ("system\n\n", "Describe:", "user\n\n", "assistant\n\n")
WORDING_TEMPERATURE = 0.07
_IGNORED = -100  # label value that the cross-entropy leaves out


@dataclass(frozen=True)
class LabelledScene:
    """One scene with its truth, for measuring what the text features know.

    Attributes:
        prompt: the plain prompt.
        frame: [H, W, 3] uint8, one frame of it.
        labels: attribute name to value, everything the prompt says.
        visible: the names among ``labels`` that one frame shows.
    """

    prompt: str
    frame: np.ndarray
    labels: Mapping[str, str]
    visible: tuple[str, ...]


@dataclass(frozen=True)
class TextData:
    """Where prompts and frames come from; every callable is a pure function of the generator it is given.

    Attributes:
        sample_prompts: one or more descriptions of one scene. The first is read as the user's prompt, the second (if
            any) is what the model learns to answer: another wording of the same scene.
        sample_pairs: as many frames [H, W, 3] uint8 as asked for, each with its descriptions. The first belongs to
            the frame; a second one is another wording of the same scene.
        labelled: a scene with truth; the flag asks for combinations that training never shows.
    """

    sample_prompts: Callable[[np.random.Generator], list[str]]
    sample_pairs: Callable[[np.random.Generator, int], list[tuple[np.ndarray, list[str]]]]
    labelled: Callable[[np.random.Generator, bool], LabelledScene]


class LlamaSize(Strict):
    """Size and schedule of the language model."""

    hidden_size: int = Field(default=128, gt=0)
    num_layers: int = Field(default=6, gt=2, description="the encoder runs all but the last two")
    num_heads: int = Field(default=4, gt=0)
    num_kv_heads: int = Field(default=2, gt=0)
    intermediate_size: int = Field(default=192, gt=0)
    vocab_size: int = Field(default=600, ge=262)
    max_tokens: int = Field(default=160, gt=16, description="token budget of a templated prompt")
    answer_tokens: int = Field(default=48, gt=0, description="room for the answer behind the prompt in training")
    steps: int = Field(default=400, gt=0)
    batch_size: int = Field(default=32, gt=0)
    optimizer: OptimizerConfig = OptimizerConfig(lr=3e-3, weight_decay=0.05, warmup_steps=50)


class ClipSize(Strict):
    """Size and schedule of the CLIP; text and vision tower have the same width."""

    hidden_size: int = Field(default=96, gt=0)
    intermediate_size: int = Field(default=192, gt=0)
    num_heads: int = Field(default=4, gt=0)
    num_text_layers: int = Field(default=3, gt=0)
    num_vision_layers: int = Field(default=3, gt=0)
    projection_size: int = Field(default=96, gt=0)
    patch_size: int = Field(default=8, gt=0)
    image_size: int = Field(default=64, gt=0)
    vocab_size: int = Field(default=600, ge=259)
    max_tokens: int = Field(default=77, gt=2)
    steps: int = Field(default=600, gt=0)
    batch_size: int = Field(default=64, gt=1)
    wording_weight: float = Field(
        default=0.5,
        ge=0,
        description="weight of the term that brings two wordings of a scene to the same pooled vector",
    )
    optimizer: OptimizerConfig = OptimizerConfig(lr=2e-3, weight_decay=0.05, warmup_steps=50)


class TextTrainConfig(Strict):
    """Everything that decides the two text models, but the data."""

    seed: int = 0
    tokenizer_samples: int = Field(default=8000, gt=0, description="scenes whose descriptions train the tokenizers")
    llm: LlamaSize = LlamaSize()
    clip: ClipSize = ClipSize()
    probe_train: int = Field(
        default=1500, gt=0, description="scenes of the training split that the linear probes are fitted on"
    )
    probe_heldout: int = Field(
        default=400, gt=0, description="held-out scenes that the probes and the retrieval are measured on"
    )
    checkpoint_every: int = Field(default=200, gt=0)
    log_every: int = Field(default=10, gt=0)


def train_text(config: TextTrainConfig, data: TextData, output_dir: Path | str) -> dict[str, Any]:
    """Train both models and write them as Hugging Face folders; returns what was measured on held-out scenes.

    Under ``output_dir``: ``text_encoder/`` (Llama with tokenizer and template.json, fp16), ``text_encoder_2/`` (CLIP
    text tower with tokenizer, fp16), ``clip/`` (the whole CLIP, fp32), ``llm-run/`` and ``clip-run/`` (metrics,
    checkpoints), ``report.json``. Called again it resumes; a half that is finished is only loaded.
    """
    output_dir = Path(output_dir)
    llm_dir, clip_text_dir = output_dir / "text_encoder", output_dir / "text_encoder_2"
    llm_tokenizer, clip_tokenizer = _tokenizers(config, data, llm_dir, clip_text_dir)
    template = _template(llm_tokenizer, config.llm.max_tokens)

    llm_task = LlamaTask(config, data, llm_tokenizer, template)
    _run(config, llm_task, output_dir / "llm-run")
    write_templates(llm_dir, TemplateSet.same(template))
    with quiet_transformers():
        copy.deepcopy(llm_task.model).to(torch.float16).save_pretrained(str(llm_dir))

    clip_task = ClipTask(config, data, clip_tokenizer)
    _run(config, clip_task, output_dir / "clip-run")
    _export_clip(clip_task, output_dir / "clip", clip_text_dir, config.clip)

    report = measure_text(TextEncoder.from_folder(llm_dir, clip_text_dir), data, config, output_dir / "clip")
    (output_dir / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


# -- the language model ----------------------------------------------------------------------------------------------


class LlamaTask:
    """Next-token prediction on templated prompts, each followed by another wording of the same scene.

    The answer makes the states of a prompt say what the scene is and not only how this wording goes on.
    """

    phases: tuple[str, ...] = ("llm",)

    def __init__(self, config: TextTrainConfig, data: TextData, tokenizer: Any, template: PromptTemplate) -> None:
        self.config, self.data, self.tokenizer, self.template = config, data, tokenizer, template
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model: Any = build_llama(config.llm, len(tokenizer), _special_ids(tokenizer))

    @property
    def train_config(self) -> TrainConfig:
        return llm_loop(self.config)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"llm": self.model}

    def optimizer(self, phase: str) -> OptimizerConfig | None:
        return None

    def active(self, phase: str, context: StepContext) -> bool:
        return True

    def batch(self, step: int, stage: Stage, shape: BatchShape) -> Batch:
        """ids and labels [B, S] int64; the labels leave out the template before the prompt."""
        rng = np.random.default_rng([self.config.seed, 1, step])
        return self._collate([self.data.sample_prompts(rng) for _ in range(shape.batch_size)])

    def _collate(self, samples: list[list[str]]) -> Batch:
        size, rows = self.config.llm, []
        for texts in samples:
            text = self.template.format(texts[0]) + (ANSWER_TEXT.format(texts[1]) if len(texts) > 1 else "")
            rows.append(self.tokenizer(text)["input_ids"][: size.max_tokens + size.answer_tokens])
        length = max(len(row) for row in rows)
        ids = torch.tensor([row + [self.tokenizer.pad_token_id] * (length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        labels = ids.masked_fill(mask == 0, _IGNORED)
        labels[:, : self.template.crop_start] = _IGNORED
        return {"ids": ids, "labels": labels}

    def loss(self, phase: str, batch: Batch, context: StepContext) -> tuple[Tensor, dict[str, Tensor | float]]:
        # No mask: padding is on the right, where a causal model's valid positions cannot look.
        logits = self.model(input_ids=batch["ids"], use_cache=False).logits
        predicted, wanted = logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
        loss = F.cross_entropy(predicted.float(), wanted, ignore_index=_IGNORED)
        return loss, {"loss": loss.detach()}

    def validate(self, context: StepContext) -> dict[str, float]:
        """Loss on held-out scenes' plain prompts."""
        rng = np.random.default_rng([self.config.seed, 3])
        batch = self._collate([[self.data.labelled(rng, True).prompt] for _ in range(64)])
        return {"heldout_loss": float(self.loss("llm", batch, context)[0])}

    def sample(self, folder: Path, context: StepContext) -> None:
        """Nothing to render."""


# -- CLIP ------------------------------------------------------------------------------------------------------------


class ClipTask:
    """Contrastive learning of a text and a vision tower on pairs of one frame and its prompt (Radford et al., 2021).

    A second contrastive term compares the pooled vectors of two wordings of each scene: a frame does not show motion
    and hardly shows a small shape, but the pooled vector that the transformer is modulated by shall know them.
    """

    phases: tuple[str, ...] = ("clip",)

    def __init__(self, config: TextTrainConfig, data: TextData, tokenizer: Any) -> None:
        self.config, self.data, self.tokenizer = config, data, tokenizer
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed + 1)
            self.model: Any = build_clip(config.clip, len(tokenizer), _special_ids(tokenizer))

    @property
    def train_config(self) -> TrainConfig:
        return clip_loop(self.config)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"clip": self.model}

    def optimizer(self, phase: str) -> OptimizerConfig | None:
        return None

    def active(self, phase: str, context: StepContext) -> bool:
        return True

    def batch(self, step: int, stage: Stage, shape: BatchShape) -> Batch:
        """ids [B, S] int64, pixels [B, 3, H, W] in [-1, 1], and other_ids [B, S'] if every scene has two wordings."""
        rng = np.random.default_rng([self.config.seed, 2, step])
        pairs = self.data.sample_pairs(rng, shape.batch_size)
        limit = self.config.clip.max_tokens
        batch = {
            "ids": clip_ids(self.tokenizer, [texts[0] for _, texts in pairs], limit),
            "pixels": to_pixels([frame for frame, _ in pairs]),
        }
        if all(len(texts) > 1 for _, texts in pairs):
            batch["other_ids"] = clip_ids(self.tokenizer, [texts[1] for _, texts in pairs], limit)
        return batch

    def loss(self, phase: str, batch: Batch, context: StepContext) -> tuple[Tensor, dict[str, Tensor | float]]:
        model = self.model
        pooled = model.text_model(input_ids=batch["ids"]).pooler_output
        shown = model.vision_model(pixel_values=batch["pixels"]).pooler_output
        text, image = (F.normalize(x, dim=1) for x in (model.text_projection(pooled), model.visual_projection(shown)))
        loss, right = contrast(model.logit_scale.exp() * text @ image.T)
        values: dict[str, Tensor | float] = {"loss": loss.detach(), "batch_retrieval": right}
        if "other_ids" in batch and self.config.clip.wording_weight:
            other = model.text_model(input_ids=batch["other_ids"]).pooler_output
            alike = F.normalize(pooled, dim=1) @ F.normalize(other, dim=1).T
            wording, wording_right = contrast(alike / WORDING_TEMPERATURE)
            loss = loss + self.config.clip.wording_weight * wording
            values |= {"wording_loss": wording.detach(), "wording_retrieval": wording_right}
        return loss, values

    def validate(self, context: StepContext) -> dict[str, float]:
        """Loss on one batch of held-out scenes."""
        rng = np.random.default_rng([self.config.seed, 4])
        scenes = [self.data.labelled(rng, True) for _ in range(64)]
        batch = {
            "ids": clip_ids(self.tokenizer, [scene.prompt for scene in scenes], self.config.clip.max_tokens),
            "pixels": to_pixels([scene.frame for scene in scenes]),
        }
        return {"heldout_loss": float(self.loss("clip", batch, context)[0])}

    def sample(self, folder: Path, context: StepContext) -> None:
        """Nothing to render."""


def contrast(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric contrastive loss of similarities [B, B] whose diagonal is right, and the share of rows that agree."""
    target = torch.arange(len(logits), device=logits.device)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    return loss, (logits.argmax(dim=1) == target).float().mean()


def clip_ids(tokenizer: Any, prompts: list[str], max_tokens: int) -> Tensor:
    """Token ids [B, S], padded on the right to the longest prompt; a prompt that is too long keeps its end token."""
    return tokenizer(prompts, truncation=True, max_length=max_tokens, padding=True, return_tensors="pt")["input_ids"]


def to_pixels(frames: list[np.ndarray]) -> Tensor:
    """uint8 frames [H, W, 3] to one tensor [B, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


# -- measuring -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure_text(encoder: TextEncoder, data: TextData, config: TextTrainConfig, clip_dir: Path) -> dict[str, Any]:
    """What the exported encoders know of scenes they never saw.

    Linear probes (one per attribute, fitted on the training split) read the language model's mean state, its last
    state, and the pooled vector; CLIP retrieval is right when the found prompt's scene looks like the frame.
    """
    rng = np.random.default_rng([config.seed, 5])
    fitted = [data.labelled(rng, False) for _ in range(config.probe_train)]
    heldout = [data.labelled(rng, True) for _ in range(config.probe_heldout)]
    known, unseen = _features(encoder, fitted), _features(encoder, heldout)
    report: dict[str, Any] = {
        "scenes": {"fitted": len(fitted), "heldout": len(heldout)},
        "prompt_tokens": {"mean": float(unseen["lengths"].float().mean()), "max": int(unseen["lengths"].max())},
        "states_std": float(unseen["mean"].std()),
        "pooled_std": float(unseen["pooled"].std()),
    }
    for name in ("mean", "last", "pooled"):
        report[f"probe_{name}"] = {
            attribute: linear_probe(
                known[name],
                [scene.labels[attribute] for scene in fitted],
                unseen[name],
                [scene.labels[attribute] for scene in heldout],
            )
            for attribute in heldout[0].labels
        }
    report["clip_retrieval"] = _retrieval(clip_dir, heldout, config)
    return report


def linear_probe(known: Tensor, labels: list[str], unseen: Tensor, wanted: list[str]) -> float:
    """Accuracy on ``unseen`` [N, D] of a ridge regression to one-hot labels that is fitted on ``known`` [M, D]."""
    classes = sorted(set(labels))
    target = F.one_hot(torch.tensor([classes.index(label) for label in labels]), len(classes)).double()
    center, scale = known.double().mean(0), known.double().std(0) + 1e-6

    def design(features: Tensor) -> Tensor:
        x = (features.double() - center) / scale
        return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)

    x = design(known)
    weights = torch.linalg.solve(x.T @ x + 1e-3 * len(x) * torch.eye(x.shape[1], dtype=x.dtype), x.T @ target)
    found = (design(unseen) @ weights).argmax(1).tolist()
    return sum(classes[i] == label for i, label in zip(found, wanted, strict=True)) / len(wanted)


def _features(encoder: TextEncoder, scenes: list[LabelledScene], batch_size: int = 64) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {"mean": [], "last": [], "pooled": [], "lengths": []}
    for start in range(0, len(scenes), batch_size):
        found = encoder.encode([scene.prompt for scene in scenes[start : start + batch_size]])
        lengths = found.mask.sum(1)
        parts["mean"].append(found.states.sum(1) / lengths[:, None])
        parts["last"].append(found.states[torch.arange(len(lengths)), lengths - 1])
        parts["pooled"].append(found.pooled)
        parts["lengths"].append(lengths)
    return {name: torch.cat(values) for name, values in parts.items()}


def _retrieval(clip_dir: Path, scenes: list[LabelledScene], config: TextTrainConfig) -> dict[str, float]:
    """Share of frames whose nearest prompt describes a scene of the same look, and the same per visible attribute."""
    from transformers import AutoTokenizer, CLIPModel

    with quiet_transformers():
        model: Any = CLIPModel.from_pretrained(str(clip_dir), use_safetensors=True, **SAFE_OPTIONS)
        tokenizer = AutoTokenizer.from_pretrained(str(clip_dir), **SAFE_OPTIONS)
    model.eval()
    ids = clip_ids(tokenizer, [scene.prompt for scene in scenes], config.clip.max_tokens)
    nearest = model(input_ids=ids, pixel_values=to_pixels([scene.frame for scene in scenes])).logits_per_image.argmax(1)
    visible = scenes[0].visible
    pairs = [(scene.labels, scenes[int(j)].labels) for scene, j in zip(scenes, nearest, strict=True)]
    result = {name: sum(a[name] == b[name] for a, b in pairs) / len(pairs) for name in visible}
    return {"same_look": sum(all(a[name] == b[name] for name in visible) for a, b in pairs) / len(pairs)} | result


# -- parts -----------------------------------------------------------------------------------------------------------


def _tokenizers(config: TextTrainConfig, data: TextData, llm_dir: Path, clip_dir: Path) -> tuple[Any, Any]:
    """Both tokenizers, trained on the first call and read afterwards: a resumed run must use the same ids."""
    from transformers import AutoTokenizer

    if not all((folder / "tokenizer_config.json").is_file() for folder in (llm_dir, clip_dir)):
        rng = np.random.default_rng([config.seed, 0])
        texts = [text for _ in range(config.tokenizer_samples) for text in data.sample_prompts(rng)]
        words = [word for word in _TEMPLATE_WORDS for _ in range(len(texts))]
        llm = tok.train_llm_tokenizer([*texts, *words], config.llm.vocab_size)
        tok.save_llm_tokenizer(llm_dir, llm, config.llm.max_tokens + config.llm.answer_tokens)
        clip = tok.train_clip_tokenizer(texts, config.clip.vocab_size)
        tok.save_clip_tokenizer(clip_dir, clip, config.clip.max_tokens)
    llm_tokenizer = AutoTokenizer.from_pretrained(str(llm_dir), **SAFE_OPTIONS)
    return llm_tokenizer, AutoTokenizer.from_pretrained(str(clip_dir), **SAFE_OPTIONS)


def _template(tokenizer: Any, max_tokens: int) -> PromptTemplate:
    crop_start = len(tokenizer(TEMPLATE_TEXT.split("{}")[0])["input_ids"])
    return PromptTemplate(text=TEMPLATE_TEXT, crop_start=crop_start, max_tokens=max_tokens)


def _special_ids(tokenizer: Any) -> dict[str, Any]:
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def build_llama(size: LlamaSize, vocab_size: int, special_ids: dict[str, Any]) -> Any:
    """The language model with fresh weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=size.hidden_size,
            intermediate_size=size.intermediate_size,
            num_hidden_layers=size.num_layers,
            num_attention_heads=size.num_heads,
            num_key_value_heads=size.num_kv_heads,
            max_position_embeddings=size.max_tokens + size.answer_tokens,
            tie_word_embeddings=True,
            initializer_range=0.05,
            rms_norm_eps=1e-5,
            use_cache=False,
            **special_ids,
        )
    )


def build_clip(size: ClipSize, vocab_size: int, special_ids: dict[str, Any]) -> Any:
    """The CLIP with fresh weights."""
    from transformers import CLIPConfig, CLIPModel

    common = {
        "hidden_size": size.hidden_size,
        "intermediate_size": size.intermediate_size,
        "num_attention_heads": size.num_heads,
        "projection_dim": size.projection_size,
    }
    text = common | {
        "vocab_size": vocab_size,
        "num_hidden_layers": size.num_text_layers,
        "max_position_embeddings": size.max_tokens,
        **special_ids,
    }
    vision = common | {
        "num_hidden_layers": size.num_vision_layers,
        "image_size": size.image_size,
        "patch_size": size.patch_size,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=size.projection_size))


def llm_loop(config: TextTrainConfig) -> TrainConfig:
    """The language model's run."""
    size = config.llm
    return _loop_config(config, "tiny-text-llm", size.steps, size.batch_size, size.optimizer, 16)


def clip_loop(config: TextTrainConfig) -> TrainConfig:
    """The CLIP's run."""
    size = config.clip
    return _loop_config(config, "tiny-text-clip", size.steps, size.batch_size, size.optimizer, size.image_size)


def text_workloads(config: TextTrainConfig) -> list[Workload]:
    """Both runs as the estimate sees them: prompts at their longest, vocabularies at their limits."""
    llm_size, clip_size = config.llm, config.clip
    length = llm_size.max_tokens + llm_size.answer_tokens
    ids: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    with torch.device("meta"):
        llm = build_llama(llm_size, llm_size.vocab_size, ids)
        clip = build_clip(clip_size, clip_size.vocab_size, ids)

    def run_llm(shape: BatchShape) -> Any:
        with torch.device("meta"):
            ids = torch.zeros(shape.batch_size, length, dtype=torch.long)
            # A finished mask: making one looks at values, which the meta device does not have.
            return llm(input_ids=ids, attention_mask=torch.zeros(shape.batch_size, 1, length, length)).logits

    def run_clip(shape: BatchShape) -> Any:
        with torch.device("meta"):
            size, words = 2 * shape.batch_size, clip_size.max_tokens
            ids, mask = torch.zeros(size, words, dtype=torch.long), torch.zeros(size, 1, words, words)
            pixels = torch.empty(shape.batch_size, 3, clip_size.image_size, clip_size.image_size)
            texts = clip.text_model(input_ids=ids, attention_mask=mask).pooler_output
            return texts, clip.vision_model(pixel_values=pixels).pooler_output

    patches = (clip_size.image_size // clip_size.patch_size) ** 2
    return [
        Workload(llm_loop(config), {"llm": llm}, run_llm, lambda _: length, note="prompts counted at their longest"),
        Workload(clip_loop(config), {"clip": clip}, run_clip, lambda _: patches + 2 * clip_size.max_tokens),
    ]


def _loop_config(
    config: TextTrainConfig, name: str, steps: int, batch_size: int, optimizer: OptimizerConfig, size: int
) -> TrainConfig:
    shape = BatchShape(batch_size=batch_size, num_frames=1, height=size, width=size)
    stage = Stage(name="text", steps=steps, shapes=(shape,))
    return TrainConfig(
        name=name,
        stages=(stage,),
        optimizer=optimizer,
        seed=config.seed,
        ema_decay=0.0,
        checkpoint_every=config.checkpoint_every,
        keep_checkpoints=1,
        sample_every=0,
        validate_every=config.checkpoint_every,
        log_every=config.log_every,
    )


def _run(config: TextTrainConfig, task: LlamaTask | ClipTask, run_dir: Path) -> None:
    # Each half records its own part only: changing the CLIP leaves a finished language model usable.
    part = config.llm if isinstance(task, LlamaTask) else config.clip
    record = {"size": part.model_dump(mode="json"), "tokenizer_samples": config.tokenizer_samples}
    trainer = Trainer(task.train_config, task, task, run_dir, record=record)
    if not (trainer.resume() and trainer.step == trainer.config.total_steps):
        trainer.run()
    task.model.eval()


def _export_clip(task: ClipTask, clip_dir: Path, text_dir: Path, size: ClipSize) -> None:
    """The whole CLIP (fp32, for later use as a perceptual network) and its text tower alone (fp16, to ship)."""
    from transformers import CLIPTextModel

    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"height": size.image_size, "width": size.image_size},
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    with quiet_transformers():
        task.model.save_pretrained(str(clip_dir))
        task.tokenizer.save_pretrained(str(clip_dir))
        text = CLIPTextModel.from_pretrained(str(clip_dir), dtype=torch.float16, use_safetensors=True, **SAFE_OPTIONS)
        text.save_pretrained(str(text_dir))
    (clip_dir / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")
