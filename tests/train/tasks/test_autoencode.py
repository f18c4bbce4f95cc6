import pytest
import torch
from torch import nn

from openhunyuan.base.errors import UserError
from openhunyuan.models.vae.config import VAEConfig
from openhunyuan.models.vae.model import CausalVAE
from openhunyuan.train.config import BatchShape, OptimizerConfig, Stage, TrainConfig
from openhunyuan.train.loop import StepContext, Trainer, step_generator
from openhunyuan.train.tasks.autoencode import (
    AutoencodeConfig,
    AutoencodeTask,
    PatchDiscriminator,
    TileSizes,
    hinge_discriminator_loss,
)

CONFIG = VAEConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4)
STAGE = Stage(name="s", steps=10, shapes=(BatchShape(batch_size=2, num_frames=5, height=16, width=16),))


def context(step: int = 0) -> StepContext:
    return StepContext(step, 10, STAGE, step_generator(0, step))


def features(x):
    return [x, nn.functional.avg_pool2d(x, 2)]


@pytest.fixture
def task() -> AutoencodeTask:
    torch.manual_seed(0)
    config = AutoencodeConfig(discriminator_width=8, adversarial_start=2, perceptual_start=1, perceptual_frames=2)
    video = torch.rand(2, 3, 5, 16, 16) * 2 - 1
    return AutoencodeTask(config, CausalVAE(CONFIG), features, {"video": video})


def test_the_loss_is_the_reports_weighted_sum(task):
    video = task.validation["video"]
    loss, values = task.loss("model", {"video": video}, context(5))
    posterior = task.vae.encode(video)
    decoded = task.vae.decode(posterior.sample(step_generator(0, 5)))
    l1, kl = (decoded - video).abs().mean(), posterior.kl().mean() / (3 * 5 * 16 * 16)
    expected = l1 + 1e-6 * kl + 0.1 * values["perceptual"] + 0.05 * -task.discriminator(decoded).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_terms_start_when_they_are_told_to(task):
    batch = {"video": task.validation["video"]}
    assert not {"perceptual", "adversarial"} & set(task.loss("model", batch, context(0))[1])
    assert "perceptual" in task.loss("model", batch, context(1))[1]
    assert not task.active("discriminator", context(1)) and task.active("discriminator", context(2))


def test_each_phase_moves_its_own_module_only(task):
    batch = {"video": task.validation["video"]}
    task.loss("model", batch, context(5))[0].backward()
    assert all(p.grad is None for p in task.discriminator.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in task.vae.parameters())
    task.vae.zero_grad()
    task.loss("discriminator", batch, context(5))[0].backward()
    assert all(p.grad is None for p in task.vae.parameters())
    assert any(p.grad.abs().sum() > 0 for p in task.discriminator.parameters())


def test_hinge_loss_is_zero_only_when_real_and_fake_are_told_apart():
    assert hinge_discriminator_loss(torch.full((4,), 2.0), torch.full((4,), -2.0)) == 0
    assert hinge_discriminator_loss(torch.zeros(4), torch.zeros(4)) == 1


@pytest.mark.parametrize("num_frames", [1, 9])
def test_the_discriminator_scores_patches_of_clips_and_images(num_frames):
    scores = PatchDiscriminator(8)(torch.rand(2, 3, num_frames, 32, 32))
    assert scores.shape[:2] == (2, 1) and scores.shape[3] > 1


def test_validation_and_samples(task, tmp_path):
    with torch.no_grad():
        values = task.validate(context())
        task.sample(tmp_path, context())
    assert set(values) == {"psnr_video", "ssim_video", "perceptual_video"}
    assert 0 < values["psnr_video"] < 60 and -1 < values["ssim_video"] < 1
    assert (tmp_path / "video.png").stat().st_size > 0


def test_decoder_only_leaves_the_encoder_bit_for_bit():
    torch.manual_seed(0)
    vae = CausalVAE(CONFIG)
    task = AutoencodeTask(AutoencodeConfig(decoder_only=True, adversarial_weight=0), vae, None, {})
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    loss, _ = task.loss("model", {"video": torch.rand(2, 3, 5, 16, 16) * 2 - 1}, context())
    loss.backward()
    torch.optim.SGD([p for p in vae.parameters() if p.requires_grad], lr=0.1).step()
    changed = {name for name, value in vae.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)


class Noise:
    def batch(self, step, stage, shape):
        size = shape.batch_size, 3, shape.num_frames, shape.height, shape.width
        return {"video": torch.rand(size, generator=step_generator(9, step)) * 2 - 1}


def test_a_resumed_run_with_its_discriminator_is_bit_exact(task, tmp_path):
    shapes = tuple(BatchShape(batch_size=1, num_frames=n, height=16, width=16) for n in (5, 1))
    config = TrainConfig(
        name="mixed", stages=(Stage(name="s", steps=7, shapes=shapes),), ema_decay=0.9, sample_every=0,
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=2), validate_every=0, checkpoint_every=4,
    )  # fmt: skip

    def state() -> dict[str, torch.Tensor]:
        held = task.modules().items()
        return {f"{name}/{k}": v.clone() for name, module in held for k, v in module.state_dict().items()}

    start = {name: {k: v.clone() for k, v in module.state_dict().items()} for name, module in task.modules().items()}
    Trainer(config, task, Noise(), tmp_path / "whole").run()
    wanted = state()
    for name, module in task.modules().items():
        module.load_state_dict(start[name])
    broken = Trainer(config, task, Noise(), tmp_path / "broken")
    for _ in range(6):
        if broken.step == 4:
            broken.save()
        broken.train_step(broken.fetch(broken.step))
    Trainer(config, task, Noise(), tmp_path / "broken").run()
    assert all(torch.equal(value, wanted[name]) for name, value in state().items())


TILES = TileSizes(tile_size=16, tile_stride=8, tile_frames=8, tile_frame_stride=4)


def tiling_task(prob: float) -> AutoencodeTask:
    torch.manual_seed(0)
    config = AutoencodeConfig(perceptual_weight=0, adversarial_weight=0, tiling_prob=prob, tiles=TILES)
    return AutoencodeTask(config, CausalVAE(CONFIG), None, {"video": torch.rand(1, 3, 9, 24, 24) * 2 - 1})


def test_the_tiling_fine_tune_goes_through_the_real_tiled_path():
    task = tiling_task(1.0)
    video = task.validation["video"]
    loss, values = task.loss("model", {"video": video}, context())
    generator = context().generator
    torch.rand((), generator=generator)
    posterior = task.vae.encode(video, TILES.tiling)
    decoded = task.vae.decode(posterior.sample(generator), TILES.tiling)
    assert values["l1"].item() == pytest.approx((decoded - video).abs().mean().item(), rel=1e-5)
    assert values["psnr_tiled"] == values["psnr"]
    # Gradients come back through every tile, and are those of the loss: compared with a small step along them.
    loss.backward()
    weight = task.vae.decoder.conv_out.conv.weight
    direction = weight.grad / weight.grad.norm()
    with torch.no_grad():
        weight += 1e-3 * direction
        up = task.loss("model", {"video": video}, context())[0].item()
        weight -= 2e-3 * direction
        down = task.loss("model", {"video": video}, context())[0].item()
    assert (up - down) / 2e-3 == pytest.approx(weight.grad.norm().item(), rel=0.05)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in task.vae.parameters())


def test_tiling_is_switched_on_and_off_at_random_and_what_fits_is_not_called_tiled():
    task = tiling_task(0.5)
    batch = {"video": task.validation["video"][:, :, :1]}
    tiled = ["psnr_tiled" in task.loss("model", batch, context(step))[1] for step in range(24)]
    assert 4 < sum(tiled) < 20
    small = {"video": batch["video"][..., :16, :16]}
    assert not any("psnr_tiled" in task.loss("model", small, context(step))[1] for step in range(8))


def test_validation_of_the_tiling_fine_tune_measures_its_seams():
    with torch.no_grad():
        values = tiling_task(0.5).validate(context())
    assert {"psnr_video_tiled", "seam_video", "seam_video_untiled"} <= set(values)
    assert values["psnr_video_tiled"] != values["psnr_video"] and values["seam_video"] > 0


def test_tiles_that_do_not_fit_together_are_refused():
    with pytest.raises(UserError, match="tile_stride is 8"):
        TileSizes(tile_size=32, tile_stride=8)
