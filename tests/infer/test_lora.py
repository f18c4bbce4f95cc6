"""LoRAs through the request: applied, several, exchanged, taken off, recorded, and refused before sampling."""

import copy
from pathlib import Path

import pytest
import torch

from openhunyuan.base.errors import UserError
from openhunyuan.base.video import read_metadata
from openhunyuan.cli.main import main
from openhunyuan.convert.load import open_model
from openhunyuan.convert.lora import write_lora
from openhunyuan.infer.lora import changed_files
from openhunyuan.infer.pipeline import Pipeline
from openhunyuan.models.lora import LoRA, LowRank, features
from openhunyuan.models.zoo import file_sha256
from openhunyuan.ops.float8 import Float8Linear, dequantize

PROMPT = "a large red circle moves right on a black background"


@pytest.fixture(scope="module")
def pipe(micro_model_folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(str(micro_model_folder), device="cpu")


def some_lora(pipe: Pipeline, seed: int) -> LoRA:
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for name, module in pipe.model.dit.named_modules():
        if ("blocks" in name) and (size := features(module)):
            down, up = torch.randn(2, size[1], generator=generator), torch.randn(size[0], 2, generator=generator)
            pairs[name] = (LowRank(0.2 * down, 0.2 * up, 2.0),)
    return LoRA(pairs)


@pytest.fixture(scope="module")
def files(pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("loras")
    paths = [str(folder / "a.safetensors"), str(folder / "b.safetensors")]
    for seed, (path, name) in enumerate(zip(paths, ("kohya", "diffusers"), strict=True)):
        write_lora(path, some_lora(pipe, seed), pipe.model.dit, name)
    return paths


def sample(pipe: Pipeline, *lora: str) -> torch.Tensor:
    return pipe(prompt=PROMPT, seed=1, lora=lora).latents


def by_hand(micro_model_folder: Path, *weighted: tuple[LoRA, float]) -> torch.Tensor:
    """Latents of a pipeline to whose weights the dense updates were added."""
    other = Pipeline.from_pretrained(str(micro_model_folder), device="cpu")
    parameters = dict(other.model.dit.named_parameters())
    for lora, scale in weighted:
        for name, (pair,) in lora.pairs.items():
            weight = parameters[f"{name}.weight"]
            weight.data = weight.data + scale * (pair.up @ pair.down)  # Not in place: the file's mapping is shared.
    return sample(other)


def test_several_by_request_and_off_again(pipe: Pipeline, files: list[str], micro_model_folder: Path) -> None:
    a, b = files
    plain = sample(pipe)
    both = sample(pipe, f"{a}:0.5", b)
    expected = by_hand(micro_model_folder, (some_lora(pipe, 0), 0.5), (some_lora(pipe, 1), 1.0))
    torch.testing.assert_close(both, expected, rtol=1e-3, atol=1e-3)
    assert (both - plain).abs().max() > 0.05
    only_b = sample(pipe, b)
    torch.testing.assert_close(only_b, by_hand(micro_model_folder, (some_lora(pipe, 1), 1.0)), rtol=1e-3, atol=1e-3)
    # Twice the same file is the sum of its scales.
    torch.testing.assert_close(sample(pipe, f"{a}:0.25", b, f"{a}:0.25"), both, rtol=1e-4, atol=1e-4)
    assert torch.equal(sample(pipe, f"{a}:0.5", b), both)
    assert torch.equal(sample(pipe), plain)
    assert not any(".lora." in name for name in pipe.model.dit.state_dict())


def test_eight_bit_weights_take_them(pipe: Pipeline, files: list[str], micro_model_folder: Path) -> None:
    """Against a model in float32 that has the rounded weights and the dense update."""
    stored = Pipeline(open_model(str(micro_model_folder), "cpu", float8=True))
    plain = sample(stored)
    reference = Pipeline.from_pretrained(str(micro_model_folder), device="cpu")
    lora, count = some_lora(pipe, 0), 0
    for name, module in reference.model.dit.named_modules():
        eight = stored.model.dit.get_submodule(name)
        if isinstance(eight, Float8Linear):
            count += 1
            module.weight.data = dequantize(eight.weight, eight.weight_scale, torch.float32)
        if name in lora.pairs:
            (pair,) = lora.pairs[name]
            module.weight.data = module.weight.data + pair.up @ pair.down
    assert count == 16
    with_lora = sample(stored, files[0])
    torch.testing.assert_close(with_lora, sample(reference), rtol=1e-3, atol=1e-3)
    assert (with_lora - plain).abs().max() > 0.05
    assert torch.equal(sample(stored), plain)


def test_the_weights_are_ordinary_tensors_afterwards(pipe: Pipeline, files: list[str]) -> None:
    """Sampling runs in inference mode; what it put on the model can still be copied and changed outside."""
    sample(pipe, files[0])
    dit = copy.deepcopy(pipe.model.dit)
    assert not any(parameter.is_inference() for parameter in dit.parameters())
    sample(pipe)


def test_a_file_that_changed_is_read_again(pipe: Pipeline, files: list[str], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_lora(path, some_lora(pipe, 0), pipe.model.dit)
    before = sample(pipe, str(path))
    write_lora(path, some_lora(pipe, 5), pipe.model.dit, dtype=torch.float64)
    assert not torch.equal(sample(pipe, str(path)), before)
    sample(pipe)


def test_batches_take_them_too(pipe: Pipeline, files: list[str]) -> None:
    frames = pipe.generate_batch([PROMPT], [1], lora=(files[0],))
    alone = pipe(prompt=PROMPT, seed=1, lora=(files[0],)).frames[0]
    assert abs(frames[0].astype(int) - alone).max() <= 1


def test_a_lora_for_another_model_is_refused_before_any_weights_are_read(
    micro_model_folder: Path, tmp_path: Path
) -> None:
    pair = (LowRank(torch.zeros(2, 64), torch.zeros(192, 2), 2.0),)
    wide = torch.nn.ModuleDict({"double_blocks": torch.nn.ModuleDict({"0": torch.nn.ModuleDict()})})
    wide["double_blocks"]["0"]["img_attn_qkv"] = torch.nn.Linear(64, 192)  # pyright: ignore[reportIndexIssue]
    write_lora(tmp_path / "x.safetensors", LoRA({"double_blocks.0.img_attn_qkv": pair}), wide)
    fresh = Pipeline.from_pretrained(str(micro_model_folder), device="cpu")
    with pytest.raises(UserError, match=r"for another model.*192 by 64, but here it is 96 by 32"):
        sample(fresh, str(tmp_path / "x.safetensors"))
    assert "dit" not in fresh.model.__dict__ and "text" not in fresh.model.__dict__


def test_the_command(
    micro_model_folder: Path, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.png"
    line = ["generate", "--prompt", PROMPT, "--model", str(micro_model_folder), "--device", "cpu", "--seed", "1"]
    line += ["--num-frames", "1", "--output-path", str(target)]
    assert main([*line, "--lora", f"{files[0]}:0.5", "--lora", files[1]]) == 0
    record = read_metadata(target)
    assert record["lora"] == [f"{files[0]}:0.5", files[1]]
    assert record["made_by"]["lora"] == {path: file_sha256(Path(path)) for path in files}
    assert changed_files({files[0]: "0" * 64, files[1]: file_sha256(Path(files[1]))}) == [files[0]]
    again = tmp_path / "again.png"
    assert main(["replay", str(target), "--output-path", str(again)]) == 0
    from PIL import Image, ImageChops

    assert ImageChops.difference(Image.open(target), Image.open(again)).getbbox() is None

    for bad, message in (("none.safetensors", "does not exist"), (str(target), "is not a safetensors file")):
        capsys.readouterr()
        assert main([*line, "--lora", bad]) == 2
        errors = capsys.readouterr().err.strip().splitlines()
        assert len(errors) == 1 and message in errors[0]
