"""Pictures as given frames: files, buckets, crops, and what sampling and training make of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openhunyuan.base.errors import UserError
from openhunyuan.base.sizes import aspect_buckets
from openhunyuan.infer.conditions import (
    BUCKET_SIDES,
    BUCKET_STEP,
    FrameCondition,
    choose_bucket,
    first_frames,
    fit_image,
    load_image,
    nearest_resolution,
)
from openhunyuan.models.vae.config import VAEConfig
from openhunyuan.models.vae.model import CausalVAE


@pytest.mark.parametrize(("resolution", "count"), [("720p", 91), ("540p", 67), ("360p", 43)])
def test_buckets_are_the_released_ones(resolution: str, count: int) -> None:
    """Their number is a release fact; each holds as many 32x32 cells as the square allows, or a row or column less."""
    side = BUCKET_SIDES[resolution]
    found = aspect_buckets(side, BUCKET_STEP)
    assert len(set(found)) == len(found) == count
    for height, width in found:
        assert height % 32 == width % 32 == 0
        assert max(height, width) <= 4 * min(height, width)
        assert height * width <= round((side / 32) ** 2) * 1024
        assert (height + 32) * (width + 32) > side * side * 0.98
    assert {(width, height) for height, width in found} == set(found)


def test_720p_has_the_published_wide_bucket() -> None:
    assert (704, 1280) in aspect_buckets(960, BUCKET_STEP)
    assert (720, 1280) not in aspect_buckets(960, BUCKET_STEP)
    # 16:9 lies between 704x1280 and 704x1248; a wide picture takes the one that is less wide.
    assert choose_bucket(1080, 1920, "720p") == (704, 1248)
    assert choose_bucket(1090, 2000, "720p") == (704, 1280)
    assert choose_bucket(1000, 1000, "720p") == (960, 960)


@pytest.mark.parametrize(
    "shape", [(720, 1280), (1280, 720), (500, 500), (999, 1000), (100, 3000), (3000, 100), (641, 360)]
)
@pytest.mark.parametrize("resolution", BUCKET_SIDES)
def test_a_bucket_cuts_the_longer_side_and_is_the_nearest_that_does(shape: tuple[int, int], resolution: str) -> None:
    height, width = choose_bucket(*shape, resolution)
    aspect, ratios = shape[0] / shape[1], [h / w for h, w in aspect_buckets(BUCKET_SIDES[resolution], BUCKET_STEP)]
    if aspect >= 1:
        assert height / width <= aspect + 1e-5
        assert not any(height / width + 1e-9 < ratio < aspect - 1e-5 for ratio in ratios)
    else:
        assert height / width >= aspect - 1e-5
        assert not any(aspect + 1e-5 < ratio < height / width - 1e-9 for ratio in ratios)


def test_small_models_keep_their_own_size() -> None:
    assert nearest_resolution(64, 64) is None
    assert [nearest_resolution(*size) for size in ((720, 1280), (544, 960), (480, 480))] == ["720p", "540p", "360p"]
    with pytest.raises(UserError, match="1080p"):
        choose_bucket(10, 10, "1080p")


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (64, 48), (33, 57), (1, 300)])
@pytest.mark.parametrize("size", [(32, 48), (48, 32), (32, 32)])
def test_a_fitted_picture_covers_the_frame_without_distortion(shape: tuple[int, int], size: tuple[int, int]) -> None:
    """A picture of its own coordinates: the centre stays the centre, and both axes are scaled alike."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    red = np.rint((x + 0.5) / shape[1] * 255)
    green = np.rint((y + 0.5) / shape[0] * 255)
    image = Image.fromarray(np.stack([red, green, red * 0], axis=-1).astype(np.uint8))
    fitted = fit_image(image, *size)
    assert fitted.shape == (3, *size)
    assert fitted.dtype == torch.float32
    assert float(fitted[2].max()) == -1.0
    if min(shape) < 20:
        return
    position = (fitted[:2] + 1) / 2  # 0..1 in the picture's own coordinates
    assert float((position.mean(dim=(1, 2)) - 0.5).abs().max()) < 0.03
    inner = position[:, 4:-4, 4:-4]
    across = float((inner[0, :, 1:] - inner[0, :, :-1]).mean()) * shape[1]
    down = float((inner[1, 1:] - inner[1, :-1]).mean()) * shape[0]
    assert across == pytest.approx(down, rel=0.06)


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    fitted = fit_image(Image.fromarray(pixels), 32, 48)
    assert np.array_equal(((fitted + 1) * 127.5).round().numpy().astype(np.uint8), pixels.transpose(2, 0, 1))


def test_picture_files(tmp_path: Path) -> None:
    """Any mode becomes RGB; sixteen bits are scaled, not clipped; a camera's turn is undone."""
    grey = np.linspace(0, 65535, 12, dtype=np.uint16).reshape(3, 4)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    assert np.array_equal(np.asarray(load_image(tmp_path / "deep.png"))[..., 0], (grey >> 8).astype(np.uint8))
    for mode in ("L", "RGBA", "P", "1"):
        Image.new(mode, (4, 3)).save(tmp_path / f"{mode}.png")
        assert load_image(tmp_path / f"{mode}.png").mode == "RGB"
    turned = Image.new("RGB", (4, 3))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (3, 4)


def test_a_twenty_megapixel_picture_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (5472, 3648), (10, 200, 30)).save(tmp_path / "large.png", compress_level=1)
    fitted = fit_image(load_image(tmp_path / "large.png"), 64, 64)
    assert torch.allclose(fitted.mean(dim=(1, 2)), torch.tensor([10, 200, 30]) / 127.5 - 1, atol=1e-3)


def test_files_that_are_no_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("a picture, they said")
    with pytest.raises(UserError, match="not an image"):
        load_image(tmp_path / "text.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        load_image(tmp_path / "cut.png")
    Image.new("1", (20_000, 8_000)).save(tmp_path / "huge.png")
    with pytest.raises(UserError, match=r"million|cannot be read"):
        load_image(tmp_path / "huge.png")


# -- conditions ------------------------------------------------------------------------------------------------------


def _condition(kind: str) -> tuple[FrameCondition, torch.Tensor]:
    """Three samples of four latent frames: nothing given, the first, the first and the last."""
    rng = torch.Generator().manual_seed(0)
    clean, noisy = torch.randn(3, 16, 4, 2, 2, generator=rng), torch.randn(3, 16, 4, 2, 2, generator=rng)
    given = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 1]]).bool()
    return FrameCondition(kind, clean, given), noisy  # pyright: ignore[reportArgumentType]


def test_token_replace_puts_clean_frames_in_and_holds_them() -> None:
    condition, noisy = _condition("token_replace")
    seen = condition.model_input(noisy)
    assert torch.equal(seen[0], noisy[0])
    assert torch.equal(seen[1, :, 1:], noisy[1, :, 1:])
    assert torch.equal(seen[1, :, 0], condition.latents[1, :, 0])
    assert torch.equal(seen[2, :, 3], condition.latents[2, :, 3])
    held = condition.held(noisy)
    assert torch.equal(held[0], noisy[0])
    assert held[2, :, [0, 3]].abs().max() == 0
    assert torch.equal(held[2, :, 1:3], noisy[2, :, 1:3])
    assert condition.clean_frames is condition.given
    assert torch.equal(condition.start(noisy), seen)


def test_latent_concat_adds_clean_latents_and_a_mask() -> None:
    condition, noisy = _condition("latent_concat")
    seen = condition.model_input(noisy)
    assert seen.shape == (3, 33, 4, 2, 2)
    assert torch.equal(seen[:, :16], noisy)
    assert torch.equal(seen[:, 32, :, 0, 0].bool(), condition.given)
    assert seen[0, 16:].abs().max() == 0
    assert torch.equal(seen[2, 16:32, 3], condition.latents[2, :, 3])
    assert seen[2, 16:32, 1:3].abs().max() == 0
    assert condition.clean_frames is None
    assert torch.equal(condition.held(noisy), noisy)
    assert torch.equal(condition.start(noisy), noisy)


def test_stability_mixes_the_first_frame_into_all() -> None:
    for kind in ("token_replace", "latent_concat"):
        condition, noisy = _condition(kind)
        start = condition.start(noisy, stability=True)
        expected = 0.999 * noisy + 0.001 * condition.latents[:, :, :1]
        torch.testing.assert_close(start[:, :, 1:3], expected[:, :, 1:3])


def test_the_training_loss_leaves_given_frames_out() -> None:
    condition, _ = _condition("token_replace")
    errors = torch.ones(3, 16, 4, 2, 2)
    errors[condition.given[:, None, :, None, None].expand_as(errors)] = 1e6
    assert float(condition.mean(errors)) == pytest.approx(1.0)
    assert float(_condition("latent_concat")[0].mean(errors)) > 1.0


def test_of_frames_and_copies() -> None:
    first, last = torch.ones(2, 16, 1, 2, 2), torch.full((2, 16, 1, 2, 2), 2.0)
    condition = FrameCondition.of_frames("token_replace", 3, first, last)
    assert condition.given.tolist() == [[True, False, True]] * 2
    assert condition.latents[:, 0, :, 0, 0].tolist() == [[1.0, 0.0, 2.0]] * 2
    twice = condition.repeat(2).to("cpu")
    assert twice.latents.shape == (4, 16, 3, 2, 2)
    assert twice.given.shape == (4, 3)
    assert first_frames(1, 3).tolist() == [[True, False, False]]


def test_a_picture_becomes_the_latent_of_one_frame() -> None:
    from openhunyuan.infer.conditions import image_latents

    torch.manual_seed(0)
    vae = CausalVAE(VAEConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4)).eval()
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    latents = image_latents(vae, pixels)
    assert latents.shape == (2, 16, 1, 4, 6)
    with torch.no_grad():
        expected = vae.encode(pixels[:, :, None]).mean * vae.config.scaling_factor
    torch.testing.assert_close(latents, expected)
