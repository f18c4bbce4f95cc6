"""Running a stage of the report: what it starts from, its data, the task, the loop, and the model that is left."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openhunyuan.base.errors import UserError
from openhunyuan.base.log import get_logger
from openhunyuan.base.sizes import LatentSize
from openhunyuan.convert.load import open_model
from openhunyuan.convert.lora import write_lora
from openhunyuan.curate.run import read_clips
from openhunyuan.infer.conditions import ImageCondition
from openhunyuan.latents.captions import CaptionAssembly
from openhunyuan.latents.plan import CostModel
from openhunyuan.latents.shards import ShardDataset
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.load import LoadedModel, save_dit, save_model_folder, save_vae
from openhunyuan.models.lora import Adapters, new_lora
from openhunyuan.models.vae.model import CausalVAE
from openhunyuan.parallel.apply import ALONE, Layout, check_layout, whole
from openhunyuan.parallel.tensor import orders
from openhunyuan.parallel.world import World
from openhunyuan.recipes.clip_source import CuratedClips
from openhunyuan.recipes.lineage import Base, Origin, check_network, check_sizes, check_unchanged, find_origin
from openhunyuan.recipes.networks import Updates, filled, with_picture_channels
from openhunyuan.recipes.registry import SCALES, Scale
from openhunyuan.recipes.scales import SIZES, Sizes
from openhunyuan.recipes.stage_data import (
    check_same_data,
    data_record,
    encode_buckets,
    latent_draws,
    read_buckets,
    read_latents,
)
from openhunyuan.recipes.stages import STAGES, LatentRecipe, Made, VaeRecipe, shortened
from openhunyuan.recipes.tiny_flow import CPU, render_samples
from openhunyuan.recipes.tiny_vae import fitted_vae
from openhunyuan.recipes.world_source import WorldClips, heldout_clips
from openhunyuan.train.config import BatchShape, TrainConfig
from openhunyuan.train.latent_scale import channel_statistics, fold_normalisation
from openhunyuan.train.loop import Batch, Source, Task, Trainer
from openhunyuan.train.perceptual import perceptual_network
from openhunyuan.train.planned import PlannedBatches
from openhunyuan.train.probe import KEPT, Trials, device_name, memory_limit, probed
from openhunyuan.train.running import chosen_running
from openhunyuan.train.tasks.autoencode import AutoencodeTask
from openhunyuan.train.tasks.flow import EmptyText, FlowConfig, FlowTask
from openhunyuan.train.tasks.guidance import GuidanceConfig, GuidanceTask, student_of
from openhunyuan.train.tasks.preserve import PreservingFlowTask
from openhunyuan.train.tasks.steps import StepsConfig, StepsTask

LORA_FILE = "lora.safetensors"
STATISTICS = 64
"""Batches of which the latents' mean and spread are taken, at most."""


@dataclass(frozen=True)
class Options:
    """What one may say about a run of a stage; the command's options of the same names describe them."""

    scale: Scale = "tiny"
    source: str | None = None
    data: Path | None = None
    text_model: str | None = None
    steps: int | None = None
    clips: int = 256
    perceptual: str | None = None
    stored_texts: bool = False
    sample_latents: bool = False
    uniform: bool = False
    name: str | None = None
    device: torch.device = CPU
    layout: Layout = ALONE
    memory: float | None = None
    decoder_only: bool = False
    camera_prob: float | None = None
    image_share: float | None = None
    lr_scale: float | None = None
    global_batch: int | None = None
    processes: int = 1
    """with memory: of the run that its micro-batches are found for, and kept, without starting it"""

    def recipe(self, stage: str) -> Made:
        """The stage's config at the scale, shortened if asked."""
        made = STAGES[stage](self.scale)
        if self.decoder_only:
            if isinstance(made, LatentRecipe):
                raise UserError(f"--decoder-only is for the stages of the VAE; {stage} trains a transformer.")
            made = made.model_copy(update={"loss": made.loss.model_copy(update={"decoder_only": True})})
        if self.lr_scale is not None:
            optimizer = made.train.optimizer
            rates = {"lr": optimizer.lr * self.lr_scale, "muon_lr": optimizer.muon_lr * self.lr_scale}
            train = made.train.model_copy(update={"optimizer": optimizer.model_copy(update=rates)})
            made = made.model_copy(update={"train": train})
        if self.global_batch is not None:
            if isinstance(made, VaeRecipe):
                raise UserError(f"--global-batch is for the stages on latents; {stage} has a batch for every size.")
            made = made.model_copy(update={"global_batch": self.global_batch})
        return made if self.steps is None else shortened(made, self.steps)


def train(stage: str, runs_dir: Path, options: Options) -> Path:
    """Run a stage in ``runs_dir/NAME``, resuming where it stands; returns that directory.

    Raises:
        UserError: what it starts from or reads is missing, damaged or of another kind, before anything is written.
    """
    recipe = options.recipe(stage)
    origin = find_origin(stage, options.source, runs_dir)
    if options.decoder_only and origin.record["from"] is None:
        raise UserError("--decoder-only keeps an encoder that is there already: say whose with --from.")
    run_dir = runs_dir / (options.name or stage)
    check_unchanged(run_dir, origin.record)
    _check_applies(stage, recipe, origin, options)
    if isinstance(recipe, VaeRecipe):
        if options.layout != ALONE or options.memory is not None:
            raise UserError(f"{stage} trains a VAE in one process; --memory and layouts are for stages on latents.")
        return _train_vae(stage, recipe, origin, run_dir, options)
    return _LatentRun(stage, recipe, origin, run_dir, options).train()


def _check_applies(stage: str, recipe: Made, origin: Origin, options: Options) -> None:
    """Refuse what would be given in vain."""
    if options.camera_prob is not None and isinstance(recipe, VaeRecipe):
        raise UserError(f"--camera-prob is for the stages on latents; {stage} draws the clips that its recipe says.")
    if options.sample_latents and isinstance(recipe, VaeRecipe):
        raise UserError(f"--sample-latents is for the stages on latents; {stage} trains the VAE that makes them.")
    if options.uniform and isinstance(recipe, VaeRecipe):
        raise UserError(f"--uniform is for the stages on latents; {stage} draws all clips alike.")
    if options.image_share is None:
        return
    if isinstance(recipe, VaeRecipe) or recipe.condition is not None:
        raise UserError(f"{stage} says itself how first frames are given; leave --image-share out.")
    if origin.condition is None or origin.dit is None or stage == "flow-image-256":
        raise UserError(f"{stage} starts from weights that read no first frame; leave --image-share out.")


def _record(stage: str, recipe: Made, origin: Origin, options: Options, data: dict[str, Any]) -> dict[str, Any]:
    """What ``run.json`` says besides the loop's config."""
    return {
        "name": stage,
        "scale": options.scale,
        "recipe": recipe.model_dump(mode="json", exclude={"train"}),
        "lineage": origin.record,
        "data": data,
    }


def _needs_data(stage: str, options: Options, what: str) -> UserError:
    return UserError(
        f"{stage} at scale {options.scale} ({SCALES[options.scale]}) reads {what}; give them with --data. Only at "
        "scale tiny there is the synthetic world."
    )


# -- the VAE ---------------------------------------------------------------------------------------------------------


def _train_vae(stage: str, recipe: VaeRecipe, origin: Origin, run_dir: Path, options: Options) -> Path:
    if World.join(options.device).size > 1:
        raise UserError("The stages of the VAE run in one process: encoding is not a forward that sharding knows of.")
    config, sizes = recipe.train, SIZES[options.scale]
    source, data = _clips(stage, recipe, options)
    perceptual = options.perceptual or ("none" if options.scale == "tiny" else None)
    if perceptual is None:
        raise UserError(
            f"{stage} needs a perceptual network: --perceptual lpips:VGG16_FILE,LINEAR_FILE or clip:FOLDER, or "
            "--perceptual none to train without the term."
        )
    if perceptual == "none":
        recipe = recipe.model_copy(update={"loss": recipe.loss.model_copy(update={"perceptual_weight": 0.0})})
        get_logger("train").info("%s trains without the perceptual term (--perceptual names a network)", stage)
    features = None if perceptual == "none" else perceptual_network(perceptual)
    torch.manual_seed(config.seed)
    vae = _vae_start(stage, recipe, origin, sizes, options).requires_grad_(True).train()
    validation = {}
    if options.data is None:
        frames, side = sizes.vae_curriculum[-1]
        validation = {"image": heldout_clips(16, 1, side), "video": heldout_clips(min(4, options.clips), frames, side)}
    if isinstance(features, nn.Module):
        features.to(options.device)
    task = AutoencodeTask(recipe.loss, vae, features, validation)
    record = _record(stage, recipe, origin, options, data)
    record |= {"vae": sizes.vae.to_dict(), "perceptual_network": perceptual, "base": None, "condition": None}
    trainer = Trainer(config, task, source, run_dir, record, options.device)
    trainer.run()
    vae = vae.cpu()
    last = config.stages[-1]
    if vae.config.scaling_factor == 1.0 and not recipe.loss.decoder_only:  # published ones keep their config's scale
        numbers = range(max(2, min(STATISTICS, options.clips)))
        seen = [source.batch(config.total_steps + i, last, last.shapes[i % len(last.shapes)]) for i in numbers]
        clips = [clip for batch in seen for clip in batch["video"].split(1)]
        fold_normalisation(vae, *channel_statistics(vae, clips))
    save_vae(run_dir / "vae", vae, torch.float16)
    return run_dir


def _clips(stage: str, recipe: VaeRecipe, options: Options) -> tuple[Source, dict[str, Any]]:
    seed = recipe.train.seed
    if options.data is None:
        if options.scale != "tiny":
            raise _needs_data(stage, options, "curated clips")
        return WorldClips(seed), {"world": {}}
    clips = [clip for clip in read_clips(options.data) if not clip.dropped]
    source = CuratedClips(clips, options.data, seed)
    source.check(recipe.train.stages)
    return source, {"folder": str(options.data), "clips": len(source.clips)}


def _vae_start(stage: str, recipe: VaeRecipe, origin: Origin, sizes: Sizes, options: Options) -> CausalVAE:
    if origin.model:
        vae = open_model(origin.model, "cpu", torch.float32).vae
        if vae.config != sizes.vae:
            raise UserError(f"The VAE of {origin.model} is not the one of scale {options.scale}; choose its --scale.")
        return vae
    if origin.checkpoint is None:
        if not recipe.linear_pyramid:
            return CausalVAE(sizes.vae)
        return fitted_vae(sizes.vae, recipe.train.seed, max(8, min(40, options.clips)))
    with torch.device("meta"):
        vae = CausalVAE(sizes.vae)
    check_network(origin, vae, stage, options.scale)
    vae = CausalVAE(sizes.vae)
    vae.load_state_dict(origin.weights())
    return vae


# -- the DiT ---------------------------------------------------------------------------------------------------------


class _LatentRun:
    """One run on latents, put together step by step; everything that can be refused is, before the loop starts."""

    def __init__(self, stage: str, recipe: LatentRecipe, origin: Origin, run_dir: Path, options: Options) -> None:
        self.stage, self.recipe, self.origin, self.run_dir, self.options = stage, recipe, origin, run_dir, options
        self.sizes = SIZES[options.scale]
        self.world = World.join(options.device)
        if options.processes > 1 < self.world.size:
            raise UserError("torchrun says how many processes there are; leave --processes out.")
        self.processes = max(self.world.size, options.processes)
        if recipe.lora and self.processes > 1:
            raise UserError("A LoRA is trained in one process; start it without torchrun.")
        recompute = options.layout.recompute or (SIZES[options.scale].recompute and not options.layout.offload)
        self.layout = options.layout.model_copy(update={"recompute": recompute and not recipe.lora})
        check_layout(self.layout, self.processes)
        self.held = self._held()
        self.base = self._base()
        self.model = self._open()
        self.inherited: ImageCondition | None = origin.condition if self.held else None
        self.condition: ImageCondition = self._spec_condition() or "token_replace"

    # What it starts from.

    def _held(self) -> DiTConfig | None:
        """The parent's transformer sizes, checked; None when this stage is the first to have one."""
        if self.stage == "flow-image-256":
            if self.origin.folder is not None:
                with torch.device("meta"):
                    vae = CausalVAE(self.sizes.vae)
                check_network(self.origin, vae, self.stage, self.options.scale)
            return None
        if self.recipe.lora:  # takes any model
            if self.origin.dit is None:
                raise UserError(f"{self.origin.folder} has no transformer that a LoRA could change; give a model.")
            return self.origin.dit
        held = check_sizes(self.origin, self.sizes.dit, self.stage, self.options.scale)
        if held.guidance_embed and isinstance(self.recipe.task, GuidanceConfig):
            source = self.origin.record["from"]
            raise UserError(
                f"{self.stage} starts from weights that need two passes, but {source} has guidance in one pass "
                "already; name another run or model with --from."
            )
        return held

    def _base(self) -> Base:
        base, text = self.origin.base, self.options.text_model
        if base is not None:
            if text not in (None, base.text):
                raise UserError(f"--text-model is {text}, but {self.origin.record['from']} was trained on {base.text}.")
            return base
        assert self.origin.folder is not None
        if text is None and self.options.scale != "tiny":
            raise UserError(f"{self.stage} needs --text-model: the model whose text encoders the captions go through.")
        return Base(text or "tiny", self.origin.folder / "vae")

    def _open(self) -> LoadedModel:
        model = open_model(self.base.text, self.options.device if self.options.device.type == "cuda" else "cpu")
        return model.with_vae(self.base.vae) if self.base.vae else model

    def _parent_dit(self) -> DiT:
        assert self.held is not None
        if self.origin.model:
            return open_model(self.origin.model, "cpu", torch.float32).dit
        return filled(self.held, self.origin.weights())

    # Data.

    def _data(self) -> tuple[list[ShardDataset], dict[str, Batch], dict[str, Any]]:
        options = self.options
        if options.data is not None:
            datasets = read_latents(options.data, self.model, options.uniform)
            return datasets, {}, data_record(options.data, datasets)
        if options.scale != "tiny":
            raise _needs_data(self.stage, options, "encoded latents")
        folder = self.run_dir.parent / "world-latents"
        shapes = self.recipe.train.stages[0].shapes
        self.world.once(lambda: encode_buckets(folder, shapes, options.clips, self.model, options.camera_prob))
        datasets, validation = read_buckets(folder, shapes, options.clips, options.camera_prob)
        said = {} if options.camera_prob is None else {"camera_prob": options.camera_prob}
        return datasets, validation, {"world": {"clips": options.clips, **said}}

    def _as_the_data(self, datasets: list[ShardDataset]) -> LatentRecipe:
        """A LoRA takes whatever sizes there are."""
        if not self.recipe.lora:
            return self.recipe
        shapes = []
        for _, frames, height, width in dict.fromkeys(shape for dataset in datasets for shape in dataset.buckets()):
            latent = LatentSize(frames, height, width)
            size = latent.video
            batch = max(1, self.sizes.tokens // latent.tokens())
            shapes.append(
                BatchShape(
                    batch_size=min(batch, self.recipe.global_batch),
                    num_frames=size.num_frames,
                    height=size.height,
                    width=size.width,
                )
            )
        train = self.recipe.train
        stages = tuple(stage.model_copy(update={"shapes": tuple(shapes)}) for stage in train.stages)
        return self.recipe.model_copy(update={"train": train.model_copy(update={"stages": stages})})

    # The run.

    def train(self) -> Path:
        datasets, validation, data = self._data()
        self.recipe = recipe = self._as_the_data(datasets)
        config = recipe.train.model_copy(update={"name": self.options.name or recipe.train.name})
        sizes = self.held or self.sizes.dit
        rank, ranks = self.layout.data_rank(World(self.world.rank, self.processes))
        source = PlannedBatches(
            datasets,
            CostModel.flops(sizes, self.sizes.text_tokens),
            recipe.global_batch,
            recipe.images_to_videos,
            seed=config.seed,
            rank=rank,
            world_size=ranks,
            image_scales=recipe.image_scales,
            draws=latent_draws(datasets, config.seed) if self.options.sample_latents else None,
        )
        for planned in config.stages:
            source.plan(planned)
        if self.options.data is not None:
            check_same_data(self.run_dir, data)
        text = self.model.text  # not before: language models are large
        if (text.states_width, text.pooled_width) != (sizes.text_dim, sizes.pooled_dim):
            raise UserError(
                f"The text encoders of {self.base.text} are {text.states_width} and {text.pooled_width} wide, but the "
                f"transformer reads {sizes.text_dim} and {sizes.pooled_dim}; choose another --text-model or --scale."
            )
        if not self.options.stored_texts:
            source.captions = CaptionAssembly(text, config.seed)
        torch.manual_seed(config.seed)
        features = text.encode([""])
        empty = EmptyText(features.states[0][features.mask[0]].float().cpu(), features.pooled[0].float().cpu())
        task, dit, adapters = self._task(empty, validation)
        record = _record(self.stage, recipe, self.origin, self.options, data) | {
            "base": self.base.record(self.run_dir),
            "dit": dit.config.model_dump(mode="json"),
            "condition": self._spec_condition(),
            "image_share": self._share(),
            "stored_texts": self.options.stored_texts,
        }
        if self.options.sample_latents:
            record["sample_latents"] = True
        if self.options.memory is not None:
            config = self._fitting(config, task, source, dit.config, self.options.memory)
        if self.options.processes > 1:
            return self.run_dir.parent / KEPT
        trainer = Trainer(config, task, source, self.run_dir, record, self.options.device, self.layout)
        trainer.run()
        if adapters is not None:
            self._save_lora(adapters, dit.config)
        else:
            state = whole(dit.state_dict(), orders(dit))
            self.world.once(lambda: self._save_model(filled(dit.config, {k: v.cpu() for k, v in state.items()})))
        self.world.leave()
        return self.run_dir

    def _fitting(
        self, config: TrainConfig, task: Task, source: PlannedBatches, dit: DiTConfig, gigabytes: float
    ) -> TrainConfig:
        """The config with the largest micro-batches that the memory takes."""
        device = self.options.device
        limit = min(self.world.every(lambda: memory_limit(gigabytes, device)))
        trials = Trials(config, task, device, source.longest, limit, self.layout, self.processes)
        depends_on = {
            "device": device_name(device),
            "stage": self.stage,
            "recipe": self.recipe.model_dump(mode="json", exclude={"train"}),
            "dit": dit.model_dump(mode="json"),
            "layout": self.layout.model_dump(mode="json"),
            "text_tokens": source.longest(config.stages[0].shapes[0], 1)["parts"][0][1]["text_mask"].shape[1],
            "async_save": chosen_running().async_save,
        }
        if self.processes > 1:
            depends_on["processes"] = self.processes
        kept = self.run_dir.parent / KEPT
        found = probed(config, trials.peak, self.recipe.global_batch, limit, kept, depends_on, self.world)
        for planned in found.stages:
            source.plan(planned)
        return found

    def _task(self, empty: EmptyText, validation: dict[str, Batch]) -> tuple[Task, DiT, Adapters | None]:
        """The task, the transformer it trains, and the LoRA on it where only that is trained."""
        recipe, kind = self.recipe, self.recipe.task
        if self.held is None:
            dit = DiT(self.sizes.dit)
            dit.init_weights()
        else:
            dit = self._parent_dit()
        if recipe.condition == "latent_concat":
            dit = with_picture_channels(dit)
        if isinstance(kind, GuidanceConfig):
            student = self._trained(student_of(dit))
            flow = kind.flow.model_copy(update={"image_share": self._inherited_share()})
            kind = kind.model_copy(update={"flow": flow})
            return GuidanceTask(kind, student, dit, empty, validation, self._render(student)), student, None
        if isinstance(kind, StepsConfig):
            student, guided = self._trained(copy.deepcopy(dit)), dit.config.guidance_embed
            flow = kind.flow.model_copy(update={"image_share": self._inherited_share()})
            # A teacher without embedded guidance is guided by two passes, which the student learns with the steps.
            kind = kind.model_copy(update={"flow": flow, "true_cfg_scale": 1.0 if guided else kind.guidance_scale})
            render = self._render(student)
            return StepsTask(kind, student, dit, empty, validation, render, guided), student, None
        if recipe.condition is None:
            kind = kind.model_copy(update={"image_share": self._inherited_share()})
        if recipe.lora:
            return self._lora_task(kind, dit, empty, validation)
        render = self._render(dit)
        if not dit.config.guidance_embed:
            return FlowTask(kind, self._trained(dit), empty, validation, render, self.condition), dit, None
        before = copy.deepcopy(dit).requires_grad_(False).eval()
        frozen = partial(nullcontext, before)
        task = PreservingFlowTask(kind, self._trained(dit), empty, validation, frozen, render, self.condition)
        return task, dit, None

    def _lora_task(
        self, kind: FlowConfig, dit: DiT, empty: EmptyText, validation: dict[str, Batch]
    ) -> tuple[Task, DiT, Adapters]:
        size = self.recipe.lora
        assert size is not None
        dit.to(self.options.device)
        adapters = Adapters(dit)
        generator = torch.Generator().manual_seed(self.recipe.train.seed)
        made = new_lora(dit, size.rank, size.alpha, size.targets, generator=generator)
        adapters.add("lora", made, trainable=True)
        updates = Updates({name: p for name, p in dit.named_parameters() if p.requires_grad})
        if not dit.config.guidance_embed:
            task = FlowTask(kind, dit, empty, validation, None, self.condition, updates)
            return task, dit, adapters
        before = partial(_without, adapters)
        task = PreservingFlowTask(kind, dit, empty, validation, before, None, self.condition, updates)
        return task, dit, adapters

    @staticmethod
    def _trained(dit: DiT) -> DiT:
        return dit.requires_grad_(True).train()

    def _inherited_share(self) -> float:
        """In how many steps first frames are given: weights that read pictures must not forget it."""
        if not self.inherited:
            return 0.0
        return self.origin.image_share if self.options.image_share is None else self.options.image_share

    def _share(self) -> float:
        """In how many steps first frames are given in this run."""
        task = self.recipe.task
        return task.image_share if self.recipe.condition and isinstance(task, FlowConfig) else self._inherited_share()

    def _spec_condition(self) -> ImageCondition | None:
        """How given frames come in: as the recipe says, else as the parent's do."""
        return self.recipe.condition or self.inherited

    # What is left.

    def _save_lora(self, adapters: Adapters, config: DiTConfig) -> None:
        with torch.device("meta"):
            plain = DiT(config)
        write_lora(self.run_dir / LORA_FILE, adapters.lora("lora"), plain)

    def _save_model(self, dit: DiT) -> None:
        """The complete model folder; with text encoders of another layout, which are large, the transformer alone."""
        files, spec = self.model.files, self.model.spec
        if files.layout != "openhunyuan":
            save_dit(self.run_dir / "dit", dit, torch.bfloat16)
            return
        condition = self._spec_condition()
        save_model_folder(
            self.run_dir / "model",
            dit,
            self.model.vae,
            files.text_encoder,
            files.text_encoder_2,
            self._defaults(dit.config),
            spec.name,
            description=f"Stage {self.stage} at scale {self.options.scale}, from {self.origin.record['from']}.",
            licence=spec.licence,
            image_condition_type=condition,
            image_optional=condition is not None and self._share() < 1,
        )

    def _defaults(self, config: DiTConfig) -> dict[str, Any]:
        """What a request leaves open: the largest square bucket, and guidance and steps as they were trained."""
        tiny, task = self.options.scale == "tiny", self.recipe.task
        shapes = self.recipe.train.stages[-1].shapes
        shape = max(shapes, key=lambda s: (s.num_frames, -abs(s.height - s.width), s.height))
        strength = 3.0 if tiny else 6.0
        steps, shift = (24, 2.0) if tiny else (50, 7.0)
        two_passes = not config.guidance_embed
        if isinstance(task, StepsConfig):
            steps, shift, two_passes = task.num_steps, task.flow_shift, False
        return {
            "height": shape.height,
            "width": shape.width,
            "num_frames": shape.num_frames,
            "num_inference_steps": steps,
            "guidance_scale": strength if config.guidance_embed else 1.0,
            "true_cfg_scale": strength if two_passes else 1.0,
            "flow_shift": shift,
            "fps": self.sizes.fps,
        }

    def _render(self, dit: DiT) -> Callable[[nn.Module, Path], None] | None:
        """Samples of the prompts of the embedded model, for weights that need no picture."""
        if self.options.scale != "tiny" or self.condition == "latent_concat":
            return None
        frames = max(shape.num_frames for shape in self.recipe.train.stages[-1].shapes)

        def render(_: nn.Module, folder: Path) -> None:
            self._save_model(dit)
            render_samples(self.run_dir / "model", folder, frames)

        return render


@contextmanager
def _without(adapters: Adapters) -> Iterator[nn.Module]:
    """The model without its LoRA."""
    adapters.set_strengths({"lora": 0.0})
    try:
        yield adapters.model
    finally:
        adapters.set_strengths({"lora": 1.0})
