import json
import shutil
from pathlib import Path

import pytest
import torch

from openhunyuan.base.errors import UserError
from openhunyuan.base.weights import load_safetensors, save_safetensors
from openhunyuan.models.dit.model import DiT
from openhunyuan.models.load import load_model, save_model_folder
from openhunyuan.models.zoo import check_model, component_parameters, wrong_hashes
from openhunyuan.ops.float8 import quantize


@pytest.fixture
def folder(micro_model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(micro_model_folder, tmp_path / "model"))


def test_a_saved_model_is_the_same_model(micro_model_folder: Path, tmp_path: Path) -> None:
    first = load_model(str(micro_model_folder), "cpu")
    copy = tmp_path / "copy"
    save_model_folder(
        copy,
        first.dit,
        first.vae,
        micro_model_folder / "text_encoder",
        micro_model_folder / "text_encoder_2",
        first.spec.defaults,
        "copy",
        dtype=None,
    )
    second = load_model(str(copy), "cpu")
    for part in ("dit", "vae"):
        one, two = getattr(first, part), getattr(second, part)
        assert one.config == two.config
        assert not one.training
        assert all(not parameter.requires_grad for parameter in one.parameters())
        state = two.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())
    features = [model.text.encode(["a red circle"]) for model in (first, second)]
    assert torch.equal(features[0].states, features[1].states)
    assert second.spec.defaults == first.spec.defaults


def test_half_precision_on_disk_is_float32_in_memory(micro_model_folder: Path, tmp_path: Path) -> None:
    model = load_model(str(micro_model_folder), "cpu")
    texts = (micro_model_folder / "text_encoder", micro_model_folder / "text_encoder_2")
    spec = save_model_folder(tmp_path, model.dit, model.vae, *texts, model.spec.defaults, "half", dtype=torch.float16)
    stored = load_safetensors(tmp_path / "dit" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    text = load_safetensors(tmp_path / "text_encoder" / "model.safetensors")
    assert {tensor.dtype for tensor in text.values()} == {torch.float16}
    loaded = load_model(str(tmp_path), "cpu").dit
    for name, value in model.dit.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float())
    assert wrong_hashes(tmp_path, spec) == []


def test_hashes_find_a_changed_file(folder: Path) -> None:
    path = folder / "vae" / "model.safetensors"
    state = load_safetensors(path)
    state["quant_conv.bias"] = state["quant_conv.bias"] + 1
    save_safetensors(path, state)
    _, spec = check_model(str(folder))
    assert wrong_hashes(folder, spec) == ["vae/model.safetensors"]


def test_parameters_are_counted_without_reading_weights(micro_model_folder: Path) -> None:
    model = load_model(str(micro_model_folder), "cpu")
    counted = component_parameters(micro_model_folder)
    assert counted["dit"] == sum(parameter.numel() for parameter in model.dit.parameters())
    assert counted["vae"] == sum(parameter.numel() for parameter in model.vae.parameters())


@pytest.mark.parametrize("component", ["dit", "vae", "text_encoder", "text_encoder_2"])
def test_truncated_and_pickled_weights(folder: Path, component: str) -> None:
    path = folder / component / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="truncated"):
        check_model(str(folder))
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(UserError, match="pickle"):
        check_model(str(folder))
    path.rename(path.with_name("pytorch_model.bin"))
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle"):
        check_model(str(folder))


def test_wrong_keys_and_shapes_are_named(folder: Path) -> None:
    path = folder / "dit" / "model.safetensors"
    good = load_safetensors(path)

    state = dict(good)
    state["img_in.prj.bias"] = state.pop("img_in.proj.bias")
    save_safetensors(path, state)
    with pytest.raises(UserError, match=r"unknown keys: img_in\.prj\.bias \(is .* meant to be img_in\.proj\.bias"):
        _ = load_model(str(folder), "cpu").dit

    state = dict(good)
    del state["img_in.proj.bias"]
    save_safetensors(path, state)
    with pytest.raises(UserError, match=r"lack keys: img_in\.proj\.bias"):
        _ = load_model(str(folder), "cpu").dit

    state = {**good, "img_in.proj.bias": torch.zeros(31)}
    save_safetensors(path, state)
    with pytest.raises(UserError, match=r"img_in\.proj\.bias has shape \[31\]"):
        _ = load_model(str(folder), "cpu").dit


@pytest.mark.parametrize("component, part", [("dit", "dit"), ("vae", "vae")])
def test_unknown_config_keys_name_the_nearest(folder: Path, component: str, part: str) -> None:
    path = folder / component / "config.json"
    key = "hidden_sizes" if component == "dit" else "scaling_facto"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: 1}))
    with pytest.raises(UserError, match=f"config.json: .*{key}.*did you mean .*{key[:-1]}"):
        getattr(load_model(str(folder), "cpu"), part)


def test_model_json_is_checked(folder: Path) -> None:
    path = folder / "model.json"
    values = json.loads(path.read_text())
    values["defaults"]["hight"] = 64
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"model\.json: Unknown field hight; did you mean height"):
        check_model(str(folder))


def test_what_is_not_a_model(tmp_path: Path, micro_model_folder: Path) -> None:
    with pytest.raises(UserError, match="did you mean tiny"):
        check_model("tinny")
    with pytest.raises(UserError, match="known models are tiny"):
        check_model("no-such-model")
    with pytest.raises(UserError, match=r"no model\.json"):
        check_model(str(tmp_path))
    with pytest.raises(UserError, match="holds no HunyuanVideo transformer"):
        check_model(str(micro_model_folder / "vae" / "model.safetensors"))
    whole = (micro_model_folder / "dit" / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:1000])
    with pytest.raises(UserError, match="truncated"):
        check_model(str(tmp_path / "cut.safetensors"))


def test_parts_that_do_not_fit_are_named(folder: Path) -> None:
    model = load_model(str(folder), "cpu")
    model.check_fit()
    model.__dict__["dit"] = DiT(model.dit.config.model_copy(update={"pooled_dim": 8}))
    with pytest.raises(UserError, match="CLIP text model's width is 32, but the transformer expects 8"):
        model.check_fit()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the mappings are read from /proc")
def test_weights_are_mapped_not_copied(micro_model_folder: Path) -> None:
    """In the stored format on the CPU the parameters are the file's own pages."""
    file = micro_model_folder / "dit" / "model.safetensors"
    dit = load_model(str(micro_model_folder), "cpu", torch.float32).dit
    mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(file) in line]
    spans = [tuple(int(end, 16) for end in fields[0].split("-")) for fields in mapped]
    inside = [
        any(low <= parameter.data_ptr() < high for low, high in spans)
        for parameter in dit.parameters()
        if parameter.numel()
    ]
    assert all(inside)


def test_eight_bits_on_request(micro_model_folder: Path) -> None:
    full, eight = (load_model(str(micro_model_folder), "cpu", float8=flag) for flag in (False, True))
    stored = eight.dit.state_dict()
    weight = full.dit.state_dict()["single_blocks.0.linear1.weight"]
    expected, scale = quantize(weight)
    assert torch.equal(stored["single_blocks.0.linear1.weight"].float(), expected.float())
    assert torch.equal(stored["single_blocks.0.linear1.weight_scale"], scale)
    assert stored["final_layer.linear.weight"].dtype == torch.float32
    scales = {name: value for name, value in stored.items() if name.endswith("weight_scale")}
    assert len(scales) == 1 * 10 + 2 * 3


def test_a_variant_inside_a_model_takes_the_other_parts_from_it(folder: Path) -> None:
    variant = folder / "fast"
    variant.mkdir()
    shutil.copytree(folder / "dit", variant / "dit")
    spec = json.loads((folder / "model.json").read_text()) | {"name": "variant", "sha256": {}}
    (variant / "model.json").write_text(json.dumps(spec))
    model = load_model(str(variant), "cpu")
    assert model.spec.name == "variant"
    assert model.files.vae == folder.resolve() / "vae"
    assert model.text.encode(["a red circle"]).states.shape[-1] == model.dit.config.text_dim
    (folder / "model.json").rename(folder / "other.json")
    with pytest.raises(UserError, match=r"vae/config\.json is missing"):
        check_model(str(variant))
