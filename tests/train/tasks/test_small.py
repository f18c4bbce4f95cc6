"""Training curation's small networks: it learns, it goes on where it stood, and what it leaves can be opened."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from openhunyuan.base.weights import load_safetensors
from openhunyuan.curate.measures.blur import Blur, network_input
from openhunyuan.curate.models.small import NETWORKS
from openhunyuan.curate.models.small_forward import DIRECTIONS, SEEN
from openhunyuan.curate.models.weights import fill, read_tensors
from openhunyuan.recipes import blur, watermark
from openhunyuan.recipes.registry import SMALL_NETWORKS
from openhunyuan.tiny.blurs import blurred, kernel_of
from openhunyuan.train.config import OptimizerConfig
from openhunyuan.train.estimate import estimate
from openhunyuan.train.tasks.small import BlurTask, MarkTask, SmallTrainConfig, train_small


def blur_config(steps: int) -> SmallTrainConfig:
    return SmallTrainConfig(
        network="blur",
        size=32,
        pairs=32,
        heldout=16,
        steps=steps,
        batch_size=8,
        optimizer=OptimizerConfig(lr=2e-3, warmup_steps=5),
        checkpoint_every=10,
        log_every=5,
    )


def test_a_blur_network_learns_and_its_file_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = blur_config(40)
    pairs, heldout = blur.make_pairs(0, 32, 32), blur.make_pairs(1, 16, 32)
    assert "32/32" in capsys.readouterr().err, "thousands take minutes"
    path = train_small(config, pairs, heldout, tmp_path / "blur")
    lines = [json.loads(line) for line in (tmp_path / "blur/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["network"] == "blur"
    assert about["small"] == config.model_dump(mode="json")
    assert about["parameters"] == sum(p.numel() for p in NETWORKS["blur"]().parameters())
    Blur(file=str(path)).check()
    again = load_safetensors(train_small(config, pairs, heldout, tmp_path / "blur"))
    assert all(torch.equal(again[name], tensor) for name, tensor in load_safetensors(path).items())


def test_mirrored_pairs_of_marks_have_the_mirrored_slope() -> None:
    config = watermark.CONFIG.model_copy(update={"size": 32})
    rng = np.random.default_rng(0)
    x = rng.integers(-100, 100, (8, 32, 32)).astype(np.int8)
    y = rng.random((2, 4, 4)).astype(np.float32)
    task = MarkTask(config, (x[None], y[None]), (x[None], y[None]))
    seen = set()
    for _ in range(20):
        a, b = task.turned(rng, x, y)
        mirrored = not np.array_equal(a, x)
        seen.add(mirrored)
        if mirrored:
            assert np.array_equal(a[4], -x[4, :, ::-1])
            assert np.array_equal(a[5], x[5, :, ::-1])
            assert np.array_equal(b, y[..., ::-1])
    assert seen == {True, False}


def test_directions_turn_with_the_picture() -> None:
    """A smeared picture that is turned is seen as what was seen of it, turned; and so are the widths."""
    rng = np.random.default_rng(0)
    kernel = kernel_of("motion", 20.0, 0.9)
    picture = blurred(rng.integers(0, 256, (64, 64, 3), np.uint8), kernel)
    seen = network_input(picture)
    y = np.ones((DIRECTIONS + 1, 8, 8), np.float32)
    y[:DIRECTIONS] = kernel.widths[:, None, None]
    task = BlurTask(blur.CONFIG, (seen[None], y[None]), (seen[None], y[None]))
    ways = set()
    for number in range(24):
        a, b = task.turned(np.random.default_rng(number), seen, y)
        draws = np.random.default_rng(number)
        turns, mirrored = int(draws.integers(4)), draws.random() < 0.5
        laid = np.rot90(picture, turns)
        laid = np.ascontiguousarray(laid[:, ::-1] if mirrored else laid)
        angle = (-1 if mirrored else 1) * (0.9 - turns * np.pi / 2)
        assert np.abs(a - network_input(laid)).mean() < 0.15
        assert np.allclose(b[:DIRECTIONS, 0, 0], kernel_of("motion", 20.0, angle).widths, atol=1e-4)
        assert b.shape == y.shape and (b[DIRECTIONS] == 1).all()
        ways.add((turns, mirrored))
    assert len(ways) == 8
    other = network_input(picture.transpose(1, 0, 2)[::-1].copy())
    assert np.abs(seen - other).mean() > 0.3  # what is compared tells one way from another


def test_cells_without_weight_change_no_loss() -> None:
    y = np.zeros((1, 2, 4, 4), np.float32)
    y[:, 1] = 1
    y[0, :, 0, 0] = (1, 1)
    y[0, :, 3, 3] = (1, 0)
    x = np.zeros((1, 8, 32, 32), np.int8)
    task = MarkTask(watermark.CONFIG, (x, y), (x, y))
    out = torch.zeros(1, 1, 4, 4)
    other = out.clone()
    other[0, 0, 3, 3] = 9.0
    loss, values = task.score(out, torch.from_numpy(y))
    assert task.score(other, torch.from_numpy(y))[0] == pytest.approx(float(loss))
    assert float(values["found"]) == 0.0
    right = torch.full((1, 1, 4, 4), -9.0)
    right[0, 0, 0, 0] = 9.0
    assert float(task.score(right, torch.from_numpy(y))[0]) < 0.01


def test_a_sure_and_right_width_costs_least() -> None:
    y = np.ones((1, DIRECTIONS + 1, 4, 4), np.float32)
    y[0, :DIRECTIONS] = np.log(5.0)
    x = np.zeros((1, SEEN, 4, 4), np.float16)
    task = BlurTask(blur.CONFIG, (x, y), (x, y))
    wanted = torch.from_numpy(y)

    def cost(width: float, variance: float) -> float:
        out = torch.full((1, 2 * DIRECTIONS, 4, 4), float(np.log(width)))
        out[:, DIRECTIONS:] = variance
        return float(task.score(out, wanted)[0])

    assert cost(5.0, -4.0) < cost(5.0, 0.0) < cost(9.0, -4.0)
    assert cost(9.0, -1.0) < cost(9.0, -4.0)


@pytest.mark.parametrize("name, module", [("watermark", watermark), ("blur", blur)])
def test_the_package_holds_what_the_recipe_makes(name: str, module: object) -> None:
    weights = Path(watermark.__file__).parents[1] / "curate/weights"
    assert (weights / f"{name}.safetensors").stat().st_size < 5e6
    fill(NETWORKS[name](), read_tensors(weights / f"{name}.safetensors"), "the package", name)
    about = json.loads((weights / f"{name}.json").read_text())
    assert about["small"] == module.CONFIG.model_dump(mode="json")  # type: ignore[attr-defined]
    (work,) = module.workloads()  # type: ignore[attr-defined]
    assert estimate(work).steps == about["small"]["steps"]
    assert name in SMALL_NETWORKS
