import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from openhunyuan.base.errors import UserError
from openhunyuan.base.sizes import VideoSize
from openhunyuan.models.dit.config import DiTConfig
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.flops import dit_flops
from openhunyuan.parallel.apply import Layout, blocks
from openhunyuan.recipes.stage_costs import measure_activations
from openhunyuan.train.config import BatchShape, OptimizerConfig, Stage, TrainConfig
from openhunyuan.train.estimate import Estimate, Forward, Workload, count_forward, duration, estimate, in_words
from openhunyuan.train.optim import build_optimizers
from tests.parallel.launch import launch
from tests.train import estimate_program as real

SMALL = DiTConfig(
    hidden_size=32, num_heads=2, num_double_blocks=1, num_single_blocks=2, num_refiner_blocks=1,
    rope_axes_dim=(4, 6, 6), text_dim=8, pooled_dim=8, guidance_embed=False,
)  # fmt: skip
CLIPS = BatchShape(batch_size=2, num_frames=9, height=32, width=64, share=2)
IMAGES = BatchShape(batch_size=8, num_frames=1, height=32, width=64)


def inputs(shape: BatchShape, device: str) -> list[torch.Tensor]:
    size, latent = shape.batch_size, VideoSize(shape.num_frames, shape.height, shape.width).latent
    return [
        torch.zeros(size, 16, latent.frames, latent.height, latent.width, device=device),
        torch.zeros(size, device=device),
        torch.zeros(size, 5, 8, device=device),
        torch.ones(size, 5, dtype=torch.bool, device=device),
        torch.zeros(size, 8, device=device),
    ]


def test_a_run_is_counted_as_its_formulas_say():
    config = TrainConfig(
        name="r", ema_decay=0.9, optimizer=OptimizerConfig(name="muon"), keep_checkpoints=2,
        stages=(Stage(name="s", steps=6, shapes=(CLIPS, IMAGES)),),
    )  # fmt: skip
    with torch.device("meta"):
        dit = DiT(SMALL)

    def tokens(shape: BatchShape) -> int:
        return VideoSize(shape.num_frames, shape.height, shape.width).latent.tokens()

    found = estimate(Workload(config, {"model": dit}, lambda shape: dit(*inputs(shape, "meta")), tokens))
    clips, images = VideoSize(9, 32, 64).latent, VideoSize(1, 32, 64).latent
    assert found.flops == 3 * (4 * dit_flops(SMALL, clips, 5, 2) + 2 * dit_flops(SMALL, images, 5, 8))
    assert (found.samples, found.tokens) == (4 * 2 + 2 * 8, 8 * clips.tokens() + 16 * images.tokens())
    numbers = sum(p.numel() for p in dit.parameters())
    assert found.parameters == {"model": (numbers, numbers)}

    # Memory of the state: what the real optimizers hold after a step.
    real = DiT(SMALL)
    optimizers = build_optimizers(real, config.optimizer)
    for p in real.parameters():
        p.grad = torch.zeros_like(p)
    held = 0
    for optimizer in optimizers:
        optimizer.step()
        held += sum(v.nbytes for state in optimizer.state.values() for v in state.values() if v.ndim)
    assert found.state == 4 * numbers * 3 + held  # weights, gradients, average
    assert found.checkpoints == 3 * (4 * numbers * 2 + held)
    assert found.memory == found.state + max(stage.activations for stage in found.stages)


def test_what_is_kept_for_the_backward_pass_is_counted_once_and_without_the_weights():
    net = nn.Sequential(nn.Linear(6, 10), nn.Sigmoid(), nn.Linear(10, 4), nn.Tanh())
    x = torch.zeros(5, 6)
    counted = count_forward(lambda: net(x), [net], [net[0], net[1]])
    assert counted.flops == 2 * 5 * (6 * 10 + 10 * 4)
    assert counted.kept == 4 * 5 * (6 + 10 + 4)  # the input, the sigmoid's output (kept by two), the tanh's output
    # computed again: the inputs of the two blocks (6, 10), and what lies after them (the sigmoid's output: 10, the
    # tanh's: 4); neither block keeps more within than that
    assert counted.recomputed == 4 * 5 * (6 + 10 + 10 + 4)


def test_several_processes_share_the_state_the_samples_and_the_time() -> None:
    config = TrainConfig(
        name="r", ema_decay=0.9, keep_checkpoints=2, stages=(Stage(name="s", steps=6, shapes=(CLIPS, IMAGES)),)
    )
    with torch.device("meta"):
        dit = DiT(SMALL)
    work = Workload(config, {"model": dit}, lambda shape: dit(*inputs(shape, "meta")), lambda _: 1)
    one, many = estimate(work), estimate(work, Layout(replicas=2), 4)
    assert many.state == pytest.approx(one.state / 2, abs=1) and many.checkpoints == one.checkpoints
    largest = max(sum(p.numel() for p in block.parameters()) for block in blocks(dit))
    outside = sum(p.numel() for name, p in dit.named_parameters() if "blocks." not in name)
    assert many.gathered == 4 * (3 * largest + 2 * outside) and one.gathered == 0
    (clips, images), (all_clips, all_images) = many.stages, one.stages
    assert clips.activations == all_clips.activations / 2  # two clips for four processes: one of them is the most
    assert images.activations == all_images.activations / 4
    assert many.flops == one.flops and many.seconds(1e9) == one.seconds(1e9) / 4
    again = estimate(work, Layout(recompute=True))
    assert again.flops * 3 == one.flops * 4
    assert all(a.activations < b.activations / 1.5 for a, b in zip(again.stages, one.stages, strict=True))
    hours = one.seconds(1e3) / 3600
    assert f"cost        {hours * 2.5:,.2f}: {hours:,.2f} device hours at 2.5" in many.lines(1e3, "x", 2.5)
    assert not [line for line in many.lines(1e9, "x") if line.startswith("cost")]
    with pytest.raises(UserError, match="4 processes cannot make 3 equal replicas"):
        estimate(work, Layout(replicas=3), 4)


def counted(layout: Layout, processes: int, global_batch: int = 0) -> Estimate:
    """What one micro-batch of one sample of ``estimate_program`` is estimated to cost."""
    shape = BatchShape(batch_size=1, num_frames=9, height=48, width=80)
    config = TrainConfig(
        name="r", ema_decay=0.9, optimizer=OptimizerConfig(name="muon"),
        stages=(Stage(name="s", steps=1, shapes=(shape,)),),
    )  # fmt: skip
    with torch.device("meta"):
        dit = DiT(real.DIT)

    def count(shape: BatchShape, layout: Layout) -> Forward:
        flops = dit_flops(real.DIT, real.LATENT, real.TEXT, 1, layout.tensor, layout.ulysses, layout.ring)
        kept = measure_activations(real.DIT, real.TEXT, layout.tensor, layout.sequence)
        run = math.ceil(real.LATENT.tokens() / (layout.ulysses * layout.ring))
        return Forward(flops, *(kept.bytes(real.DIT, run, 1, again) for again in (False, True)))

    return estimate(
        Workload(
            config, {"model": dit}, lambda shape: None, lambda shape: real.LATENT.tokens(), count=count,
            micro_batches=lambda stage: {shape: 1}, global_batch=global_batch,
        ),
        layout,
        processes,
    )  # fmt: skip


@pytest.mark.slow  # two and four processes
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_really_hold_keep_and_send_what_is_estimated(processes: int, tmp_path: Path) -> None:
    launch("tests.train.estimate_program", processes, tmp_path / "real.json")
    launch("tests.train.estimate_program", 1, tmp_path / "pretended.json", processes)
    report, pretended = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("real", "pretended"))
    assert len(report) == len(pretended) == len(real.LAYOUTS[processes])
    for case, alone in zip(report, pretended, strict=True):
        layout, most = Layout(**case["layout"]), case["most"]
        assert alone == case, layout  # one process that takes itself for the first, as micro-batches are probed
        found = counted(layout, processes)
        assert found.weights == most["weights"], layout
        assert found.state == sum(most[name] for name in ("weights", "gradients", "optimizer", "average")), layout
        assert found.stages[0].activations == pytest.approx(most["activations"], rel=0.12), layout
        if layout.alike == 1:  # else what blocks exchange is there, too
            assert found.sent == pytest.approx(most["sent"], rel=1e-3), layout


def test_tensor_and_context_parallelism_divide_what_they_divide() -> None:
    one, tensor, ring = counted(Layout(), 1), counted(Layout(tensor=2), 2), counted(Layout(ring=2), 2)
    with torch.device("meta"):
        dit = DiT(real.DIT)
    halved = sum(p.numel() for name, p in dit.named_parameters() if is_split(name))
    assert one.weights - tensor.weights == 4 * halved / 2 and ring.weights == pytest.approx(one.weights / 2, rel=0.01)
    assert tensor.gathered == tensor.sent == 0 < ring.sent
    assert tensor.checkpoints == one.checkpoints == ring.checkpoints
    for many in (tensor, ring):
        assert one.stages[0].activations / 2 < many.stages[0].activations < one.stages[0].activations / 1.4
        # All processes together do more than one alone: text, modulation and embedders are in each of them.
        assert one.flops < many.flops < 1.4 * one.flops
        assert many.seconds(1e9) == many.flops / 2e9
    whole = counted(Layout(tensor=2, sequence=False), 2)
    assert whole.weights == tensor.weights and whole.stages[0].activations > tensor.stages[0].activations


def is_split(name: str) -> bool:
    module, _, kind = name.rpartition(".")
    last = module.rpartition(".")[2]
    columns = last in ("fc1", "linear1") or last.endswith("_qkv")
    return "blocks." in name and (columns or (kind == "weight" and (last in ("fc2", "linear2") or "_proj" in last)))


def test_the_page_names_the_layout_and_what_it_leaves_out() -> None:
    page = "\n".join(counted(Layout(tensor=2, ring=2), 8, 6).lines(1e9, "x"))
    assert "8 processes, 1 x 8: each holds 1/4 of the state (of blocks 1/2 of that)" in page
    assert "4 processes work on the same samples (tensor 2 x ulysses 1 x ring 2)" in page
    assert "2 parts of the data, of a step 3 samples each (mean)" in page
    assert "activations that blocks exchange are not counted" in page


def test_layouts_that_the_run_would_refuse_are_refused() -> None:
    with pytest.raises(UserError, match="6 processes cannot work on the same samples in groups of 4"):
        counted(Layout(tensor=4), 6)
    with pytest.raises(UserError, match="tensor is 3, but has to divide the model's 4 heads"):
        counted(Layout(tensor=3), 3)
    with pytest.raises(UserError, match="ulysses is 4, but 2 attention heads cannot be dealt"):
        counted(Layout(tensor=2, ulysses=4), 8)
    with pytest.raises(UserError, match="A global batch of 3 leaves some of the 4 processes without a sample"):
        counted(Layout(tensor=2), 8, 3)
    config = TrainConfig(name="r", stages=(Stage(name="s", steps=1, shapes=(IMAGES,)),))
    with torch.device("meta"):
        work = Workload(config, {"model": DiT(SMALL)}, lambda _: None, lambda _: 1, alone="One process, please.")
    with pytest.raises(UserError, match="One process, please"):
        estimate(work, Layout(), 2)


def test_frozen_modules_cost_their_weights_only():
    config = TrainConfig(name="r", ema_decay=0, stages=(Stage(name="s", steps=1, shapes=(IMAGES,)),))
    student, teacher = nn.Linear(3, 3, device="meta"), nn.Linear(3, 3, device="meta").requires_grad_(False)
    modules = {"model": student, "teacher": teacher}
    found = estimate(Workload(config, modules, lambda _: student(torch.empty(1, 3, device="meta")), lambda _: 1))
    assert found.state == 4 * (12 + 12 + 12 + 24) and found.parameters["teacher"] == (12, 0)
    page = "\n".join(found.lines(1e9, "said so"))
    assert "teacher: 12, 0 trained" in page and "1 GFLOP/s (said so)" in page


def test_numbers_in_words():
    assert (in_words(999, "B"), in_words(1_234_567, "B")) == ("999 B", "1.23 MB")
    assert (duration(59), duration(90), duration(7200), duration(3 * 86400)) == (
        "59 seconds",
        "1.5 minutes",
        "2.0 hours",
        "3.0 days",
    )
