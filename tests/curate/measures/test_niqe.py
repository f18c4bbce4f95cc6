"""NIQE: its features against another implementation, its distances, its files."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from openhunyuan.base.errors import UserError
from openhunyuan.base.weights import save_safetensors
from openhunyuan.curate.measures.niqe import BLOCK, Gaussian, Niqe, block_features, distance, fit, save
from openhunyuan.recipes.niqe import PHOTOGRAPHS, gray_photograph, pictures
from tests.curate.measures.test_measures import measured


def textured(seed: int, height: int = 250, width: int = 400) -> np.ndarray:
    """Noise at four scales, uint8 [height, width]."""
    rng = np.random.default_rng(seed)
    found = np.full((height, width), 128, np.float32)
    for cells in (6, 12, 40, 120):
        shape = (height // (240 // cells) + 1, width // (240 // cells) + 1)
        coarse = rng.normal(0, 14, shape).astype(np.float32)
        found += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return (found + rng.normal(0, 3, (height, width))).clip(0, 255).round().astype(np.uint8)


PYIQA = (
    [2.532, 0.9359, 0.8778, 0.1532, 0.1224, 0.2469, 0.8829, 0.1504, 0.1252, 0.2487, 0.9371, 0.0667]
    + [0.1736, 0.2342, 0.9362, 0.0659, 0.1754, 0.2351, 2.6749, 1.04, 0.9066, 0.0997, 0.1959, 0.2817]
    + [0.8999, 0.0922, 0.1978, 0.2763, 0.8876, -0.0003, 0.2342, 0.2343, 0.8959, 0.0103, 0.2321, 0.2408]
)
"""Mean features of `textured(3)` by pyiqa 0.1.16 (double precision, its own imresize)."""

PYIQA_DISTANCE = 21.3512
"""Its NIQE of that picture against the Gaussian of `made_up`."""


def made_up() -> Gaussian:
    return Gaussian(np.linspace(0.2, 2, 36), np.diag(np.linspace(0.05, 0.4, 36)))


def test_features_and_distance_are_those_of_another_implementation() -> None:
    features, spread = block_features(textured(3))
    assert features.shape == (8, 36) and spread.shape == (8,)
    np.testing.assert_allclose(features.mean(axis=0), PYIQA, atol=1e-3)
    assert distance(made_up(), features) == pytest.approx(PYIQA_DISTANCE, abs=0.02)


def color(gray: np.ndarray, count: int = 2) -> np.ndarray:
    return np.repeat(np.repeat(gray[..., None], 3, axis=2)[None], count, axis=0)


@pytest.mark.parametrize("name", ["astronaut", "coffee"])
def test_spoiled_photographs_are_further_away(name: str, tmp_path: Path) -> None:
    save(fit(pictures(without=(name,)))[0], tmp_path / "others.safetensors")
    stage = Niqe(file=str(tmp_path / "others.safetensors"))
    whole = gray_photograph(name)

    def away(picture: np.ndarray) -> float:
        return measured(stage, color(picture))["distance"]

    noise = np.random.default_rng(0).normal(0, 1, whole.shape)
    series = {
        "blur": [cv2.GaussianBlur(whole, (0, 0), width) for width in (1.0, 2.0, 4.0)],
        "noise": [(whole + level * noise).clip(0, 255).astype(np.uint8) for level in (5, 10, 20)],
        "JPEG": [
            cv2.imdecode(cv2.imencode(".jpg", whole, [cv2.IMWRITE_JPEG_QUALITY, q])[1], cv2.IMREAD_GRAYSCALE)
            for q in (40, 20, 8)
        ],
    }
    for spoiled in series.values():
        distances = [away(whole), *map(away, spoiled)]
        assert distances == sorted(distances)


def test_small_and_flat_pictures_have_no_distance() -> None:
    assert measured(Niqe(), color(textured(0, BLOCK - 1, 300)))["distance"] is None
    assert measured(Niqe(), color(np.full((200, 300), 90, np.uint8)))["distance"] is None
    barred = textured(0, 3 * BLOCK, 300)
    barred[:BLOCK] = 16
    assert block_features(barred)[0].shape == (6, 36)


def test_the_package_has_a_gaussian_of_all_photographs() -> None:
    shipped = Niqe().model()
    good, count = fit(pictures())
    assert count > 200 and len(PHOTOGRAPHS) == 10
    np.testing.assert_allclose(shipped.mean, good.mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(shipped.covariance, good.covariance, rtol=1e-2, atol=1e-4)


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_safetensors(path, {"mean": torch.zeros(36)})
    with pytest.raises(UserError, match=r"covariance \[36, 36\]"):
        Niqe(file=str(path)).check()
    save_safetensors(path, {"mean": torch.full((36,), float("nan")), "covariance": torch.eye(36)})
    with pytest.raises(UserError, match="not finite"):
        Niqe(file=str(path)).check()
    with pytest.raises(UserError, match="no weights at"):
        Niqe(file=str(tmp_path / "none.safetensors")).check()


def test_the_file_is_part_of_the_key(tmp_path: Path) -> None:
    save(made_up(), tmp_path / "a.safetensors")
    assert Niqe(file=str(tmp_path / "a.safetensors")).key != Niqe().key
