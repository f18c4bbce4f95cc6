"""What a training run is: one frozen value, written beside its results and enough to run it again."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from openhunyuan.base.record import Record


class Strict(Record):
    """Base of every training record: immutable, and an unknown key is an error that names the nearest known one."""


class OptimizerConfig(Strict):
    """Optimizer of one parameter group set."""

    name: Literal["adamw", "muon"] = Field(
        default="adamw", description="AdamW, or Muon on hidden matrices and AdamW on the rest"
    )
    lr: float = Field(default=1e-3, gt=0, description="peak learning rate of the AdamW part")
    muon_lr: float = Field(default=0.02, gt=0, description="peak learning rate of the Muon part (name='muon')")
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip: float = Field(default=1.0, gt=0, description="gradients are scaled to at most this global L2 norm")
    warmup_steps: int = Field(default=100, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = Field(
        default="cosine", description="decay of the learning rate after warm-up"
    )
    schedule_steps: int = Field(
        default=0, ge=0, description="length of the decay; 0 = the run's. A run may end before its decay does"
    )
    final_lr_ratio: float = Field(default=0.02, ge=0, le=1, description="last learning rate ÷ peak")


class BatchShape(Strict):
    """How many samples of which size a batch holds."""

    batch_size: int = Field(gt=0)
    num_frames: int = Field(ge=1, description="pixel frames of a sample, 4n+1")
    height: int = Field(gt=0, multiple_of=16)
    width: int = Field(gt=0, multiple_of=16)
    share: int = Field(default=1, gt=0, description="steps of this shape in one round of the stage's shapes")

    @model_validator(mode="after")
    def _whole_latent_frames(self) -> BatchShape:
        if (self.num_frames - 1) % 4:
            raise ValueError(f"num_frames is {self.num_frames}; it must be 4n+1 (1, 5, 9, …)")
        return self


class Stage(Strict):
    """A stretch of a run over one mix of batch shapes. Stages follow each other, low resolution first; images are
    mixed into video stages against forgetting (report §4.5)."""

    name: str
    steps: int = Field(gt=0)
    shapes: tuple[BatchShape, ...] = Field(min_length=1)
    lr_scale: float = Field(default=1.0, gt=0, description="multiplies the scheduled learning rate in this stage")
    camera_prob: float = Field(default=0.0, ge=0, le=1, description="share of drawn scenes whose camera moves")
    frame_intervals: tuple[int, ...] = Field(
        default=(), description="strides of which a clip's is drawn; () = spread over the scene"
    )
    motions: tuple[str, ...] = Field(
        default=(), description="motions drawn scenes show, repeated for weight; () = all of them evenly"
    )

    def shape_at(self, step_in_stage: int) -> BatchShape:
        """The shape of a step: every round holds each shape ``share`` times, evenly spread."""
        total = sum(shape.share for shape in self.shapes)
        turns = sorted(((i + 0.5) / s.share, n) for n, s in enumerate(self.shapes) for i in range(s.share))
        return self.shapes[turns[step_in_stage % total][1]]


class FaultConfig(Strict):
    """What counts as a step gone wrong; the run goes back to its last checkpoint and leaves that step out."""

    spike_factor: float = Field(
        default=0.0,
        ge=0,
        description="a loss this many robust standard deviations above the usual one is a fault; 0 = only what is "
        "not finite",
    )
    spike_window: int = Field(default=100, ge=20, description="last losses of a kind that say what is usual")
    max_faults: int = Field(default=10, ge=0, description="a run that goes wrong more often ends")


class TrainConfig(Strict):
    """Everything a run needs but its data: the same config, data and machine give the same weights."""

    name: str
    stages: tuple[Stage, ...]
    optimizer: OptimizerConfig = OptimizerConfig()
    seed: int = 0
    ema_decay: float = Field(default=0.999, ge=0, lt=1, description="0 switches the average off")
    autocast: Literal["none", "bfloat16", "auto"] = Field(
        default="none", description="'auto' measures at start and picks the faster"
    )
    faults: FaultConfig = FaultConfig()
    checkpoint_every: int = Field(default=500, gt=0)
    keep_checkpoints: int = Field(default=2, gt=0)
    sample_every: int = Field(default=500, ge=0, description="steps between rendered samples; 0 = never")
    validate_every: int = Field(default=500, ge=0)
    log_every: int = Field(default=20, gt=0)

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> tuple[Stage, int]:
        """The stage of a global step (0-based) and the step's place in it."""
        for stage in self.stages:
            if step < stage.steps:
                return stage, step
            step -= stage.steps
        raise IndexError(f"step is beyond the run's {self.total_steps} steps")
