"""Whole models: found in every layout, opened without flags, converted to every layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openhunyuan.base.errors import UserError
from openhunyuan.convert.job import plan
from openhunyuan.convert.load import open_model
from openhunyuan.models.zoo import check_model, find_model
from tests.convert.conftest import (
    CONCAT,
    dit_state,
    vae_state,
    write_comfyui,
    write_diffusers,
    write_official,
)
from tests.convert.test_dit_formats import folder_tensors
from tools.tiny_files import same_tensors


def add_texts(
    folder: Path, texts: tuple[Path, Path], names: tuple[str, str] = ("text_encoder", "text_encoder_2")
) -> None:
    for source, name in zip(texts, names, strict=True):
        shutil.copytree(source, folder / name)


@pytest.fixture
def official_model(tmp_path: Path, micro_text_folders: tuple[Path, Path]) -> Path:
    inner = write_official(tmp_path / "ckpts")
    add_texts(tmp_path / "ckpts", micro_text_folders)
    return inner.parent


def bits(model) -> tuple[dict, dict]:  # noqa: ANN001
    return model.dit.state_dict(), model.vae.state_dict()


@pytest.mark.parametrize(
    "place",
    [
        "",
        "hunyuan-video-t2v-720p",
        "hunyuan-video-t2v-720p/transformers/mp_rank_00_model_states.pt",
    ],
)
def test_official_model_is_found_from_any_of_its_paths(official_model: Path, place: str) -> None:
    path = official_model / place
    _, spec = check_model(str(path))
    assert spec.defaults.guidance_scale == 6.0
    assert (spec.defaults.height, spec.defaults.width, spec.defaults.num_frames) == (720, 1280, 129)
    assert "European Union" in spec.licence
    model = open_model(str(path), "cpu")
    model.check_fit()
    assert (model.files.layout, model.spec.image_condition_type) == ("official", None)
    expected = {name: value.float() for name, value in dit_state().items()}
    assert same_tensors(model.dit.state_dict(), expected)
    assert same_tensors(model.vae.state_dict(), {name: value.float() for name, value in vae_state().items()})


def test_image_to_video_folders_take_their_own_text_encoder(
    tmp_path: Path, micro_text_folders: tuple[Path, Path]
) -> None:
    root = tmp_path / "ckpts"
    inner = write_official(root, kind="i2v")
    write_official(root, kind="t2v")
    add_texts(root, micro_text_folders, ("text_encoder_i2v", "text_encoder_2"))
    with pytest.raises(UserError, match=r"holds several models; give one of .*i2v.*t2v"):
        find_model(str(root))
    files = find_model(str(inner))
    assert files.text_encoder.name == "text_encoder_i2v"
    assert files.vae == inner / "vae"
    assert open_model(str(inner), "cpu").spec.image_condition_type == "token_replace"
    torch.save({"module": dit_state(CONCAT)}, inner / "transformers" / "mp_rank_00_model_states.pt")
    concat = open_model(str(inner), "cpu").spec
    assert concat.image_condition_type == "latent_concat"
    assert concat.defaults.guidance_scale == 1.0
    with pytest.raises(UserError, match=r"text_encoder.* was not found in or above"):
        find_model(str(root / "hunyuan-video-t2v-720p"))


def test_comfyui_folder_and_file(tmp_path: Path, micro_text_folders: tuple[Path, Path]) -> None:
    root = tmp_path / "ComfyUI" / "models"
    file = write_comfyui(root / "diffusion_models" / "hunyuan_video_t2v_720p_bf16.safetensors")
    job = plan(str(write_official(tmp_path / "ckpts") / "vae"), str(tmp_path / "vae"), "comfyui")
    job.run()
    (root / "vae").mkdir()
    (tmp_path / "vae" / "hunyuan_video_vae_fp16.safetensors").rename(
        root / "vae" / "hunyuan_video_vae_fp16.safetensors"
    )
    shutil.copyfile(file, root / "vae" / "not_a_vae.safetensors")
    add_texts(root, micro_text_folders)
    for path in (root, file):
        model = open_model(str(path), "cpu")
        assert model.files.layout == "comfyui"
        assert model.files.vae.name == "hunyuan_video_vae_fp16.safetensors"
        model.check_fit()
    write_comfyui(root / "diffusion_models" / "second.safetensors")
    with pytest.raises(UserError, match="several transformers; give one of"):
        find_model(str(root))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    inner = write_official(tmp_path / "ckpts")
    with pytest.raises(UserError, match=r"text_encoder \(the language model\) and the folder text_encoder_2 \(CLIP\)"):
        check_model(str(inner))
    folder = write_diffusers(tmp_path / "published")
    shutil.rmtree(folder / "vae")
    with pytest.raises(UserError, match="the folder vae and"):
        check_model(str(folder))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    with pytest.raises(UserError, match="is a WanPipeline of diffusers"):
        check_model(str(folder))


@pytest.fixture(scope="session")
def i2v_texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    from tools.tiny_release import clip_text, write_llava

    root = tmp_path_factory.mktemp("i2v-texts")
    write_llava(root / "llava")
    model, _ = clip_text(root / "clip")
    model.save_pretrained(str(root / "clip"))
    return root / "llava", root / "clip"


def test_a_llava_and_a_lora_are_known_by_their_looks(
    i2v_texts: tuple[Path, Path], tmp_path: Path, official_model: Path
) -> None:
    llava = i2v_texts[0]
    plan(str(llava), str(tmp_path / "text")).run()
    config = json.loads((tmp_path / "text" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert not any("vision" in name for name in folder_tensors(tmp_path / "text"))
    down, up = torch.randn(2, 3072), torch.randn(12288, 2)
    name = "transformer.single_transformer_blocks.3.proj_mlp"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, str(tmp_path / "lora.safetensors"))
    plan(str(tmp_path / "lora.safetensors"), str(tmp_path / "kohya.safetensors"), "kohya").run()
    written = load_file(tmp_path / "kohya.safetensors")
    assert any(key.startswith("lora_unet_single_blocks_3_linear1") for key in written)
    with pytest.raises(UserError, match="Unknown LoRA format openhunyuan"):
        plan(str(tmp_path / "lora.safetensors"), str(tmp_path / "x.safetensors"))


def test_official_to_diffusers_is_a_pipeline_of_diffusers(official_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "published"
    job = plan(str(official_model), str(out), "diffusers")
    assert job.missing == []
    job.run()
    index = json.loads((out / "model_index.json").read_text())
    assert index["_class_name"] == "HunyuanVideoPipeline"
    assert (out / "tokenizer" / "tokenizer.json").is_file()
    assert not (out / "text_encoder" / "tokenizer.json").exists()

    from diffusers import HunyuanVideoPipeline

    pipe = HunyuanVideoPipeline.from_pretrained(str(out), tokenizer=None, tokenizer_2=None, dtype=torch.bfloat16)
    assert pipe.scheduler.config.shift == 7.0
    assert len(pipe.transformer.state_dict()) == len(folder_tensors(out / "transformer"))
    for one, two in zip(bits(open_model(str(out), "cpu")), bits(open_model(str(official_model), "cpu")), strict=True):
        assert same_tensors(one, two)


def test_the_embedded_model_goes_out_and_comes_back(tmp_path: Path, micro_model_folder: Path) -> None:
    first = open_model(str(micro_model_folder), "cpu")
    plan(str(micro_model_folder), str(tmp_path / "published"), "diffusers").run()
    plan(str(tmp_path / "published"), str(tmp_path / "back")).run()
    back = open_model(str(tmp_path / "back"), "cpu")
    assert back.dit.config == first.dit.config
    for one, two in zip(bits(first), bits(back), strict=True):
        assert same_tensors(one, two)


def test_parts_can_be_converted_alone(official_model: Path, tmp_path: Path) -> None:
    inner = official_model / "hunyuan-video-t2v-720p"
    plan(str(inner / "transformers"), str(tmp_path / "dit"), "diffusers").run()
    plan(str(tmp_path / "dit"), str(tmp_path / "back"), "official").run()
    back = torch.load(tmp_path / "back" / "mp_rank_00_model_states.pt", weights_only=True)
    assert same_tensors(back["module"], dit_state())
    plan(str(inner / "vae" / "pytorch_model.pt"), str(tmp_path / "vae")).run()
    assert same_tensors(load_file(tmp_path / "vae" / "model.safetensors"), vae_state())
    shutil.rmtree(official_model / "text_encoder")
    job = plan(str(official_model), str(tmp_path / "rest"))
    assert job.missing == ["text_encoder"]


def test_a_pickled_text_model_becomes_safetensors(official_model: Path, tmp_path: Path) -> None:
    folder = official_model / "text_encoder_2"
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    plan(str(official_model), str(tmp_path / "ours")).run()
    assert same_tensors(load_file(tmp_path / "ours" / "text_encoder_2" / "model.safetensors"), state)


def test_what_is_not_converted(official_model: Path, tmp_path: Path) -> None:
    source = str(official_model)
    with pytest.raises(UserError, match="Unknown format diffuser; did you mean diffusers"):
        plan(source, str(tmp_path / "x"), "diffuser")
    with pytest.raises(UserError, match="does not exist"):
        plan(str(tmp_path / "nothing"), str(tmp_path / "x"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="is not empty"):
        plan(source, str(tmp_path / "full"))
    with pytest.raises(UserError, match="lies inside"):
        plan(source, str(official_model / "new"))
    with pytest.raises(UserError, match="is there already"):
        plan(source, str(tmp_path / "full" / "file"))
    (tmp_path / "text.txt").write_text("hello there, this is no file of weights")
    with pytest.raises(UserError, match="not a safetensors file"):
        plan(str(tmp_path / "text.txt"), str(tmp_path / "x"))


def test_a_full_disk_is_noticed_before_anything_is_written(
    official_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type(usage)(usage.total, usage.total, 1000))
    with pytest.raises(UserError, match=r"needs 0\.1 GB, but only 0\.0 GB are free"):
        plan(str(official_model), str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()
