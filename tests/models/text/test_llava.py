"""LLaVA as a text encoder that sees pictures, and its language model alone, in every layout that is published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

from openhunyuan.base.errors import UserError
from openhunyuan.models.text.encoder import TextEncoder
from openhunyuan.models.text.extract import extract_language_model
from openhunyuan.models.text.llava import ImageEncoder, ImagePreparation, is_llava
from openhunyuan.models.text.llm import LLMEncoder
from openhunyuan.models.text.templates import PromptTemplate, released_template
from tools.tiny_release import IMAGE_TOKENS, PROMPT, random_image, short_templates, write_llava

VIDEO = released_template("dit-llm-encode-video")
I2V = released_template("dit-llm-encode-video-i2v")


@pytest.fixture(scope="module")
def llava_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava") / "text_encoder_i2v"
    write_llava(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(llava_dir: Path, clip_dir: Path) -> TextEncoder:
    return TextEncoder.from_folder(llava_dir, clip_dir)


def _renamed(source: Path, target: Path, names: dict[str, str]) -> Path:
    """The LLaVA folder with prefixes of its keys replaced."""
    shutil.copytree(source, target)
    state = load_file(source / "model.safetensors")
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        prefix = max((p for p in names if name.startswith(p)), key=len, default="")
        out[names.get(prefix, "") + name.removeprefix(prefix)] = tensor
    save_file(out, target / "model.safetensors", metadata={"format": "pt"})
    return target


TRANSFORMERS_5 = {
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "vision_tower.vision_model.": "model.vision_tower.",
    "vision_tower.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}
TRANSFORMERS_4_VISION = {
    "vision_tower.": "vision_tower.vision_model.",
    "vision_tower.vision_model.": "vision_tower.vision_model.",
}


@pytest.mark.parametrize("names", [TRANSFORMERS_5, TRANSFORMERS_4_VISION], ids=["transformers 5", "transformers 4"])
def test_keys_of_both_transformers_give_the_same(
    names: dict[str, str], llava_dir: Path, clip_dir: Path, encoder: TextEncoder, tmp_path: Path
) -> None:
    other = TextEncoder.from_folder(_renamed(llava_dir, tmp_path / "llava", names), clip_dir)
    image = random_image(40, 60)
    for one, two in ((encoder.encode([PROMPT]), other.encode([PROMPT])),) + (
        (encoder.encode([PROMPT], images=[image]), other.encode([PROMPT], images=[image])),
    ):
        assert torch.equal(one.states, two.states)


def test_the_language_model_is_the_same_in_every_layout(llava_dir: Path, tmp_path: Path) -> None:
    """Whole LLaVA, extracted LlamaForCausalLM, bare LlamaModel: one state, that of the whole model's layer -3."""
    extract_language_model(llava_dir, tmp_path / "causal", torch.float32)
    whole = LlamaForCausalLM.from_pretrained(str(tmp_path / "causal")).eval()
    whole.model.save_pretrained(str(tmp_path / "bare"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(llava_dir / name, tmp_path / "bare" / name)
    ids = AutoTokenizer.from_pretrained(str(llava_dir))(VIDEO.format(PROMPT), return_tensors="pt")
    with torch.no_grad():
        wanted = whole(**ids, output_hidden_states=True).hidden_states[-3][0, VIDEO.crop_start :]
    for folder in (llava_dir, tmp_path / "causal", tmp_path / "bare"):
        out = LLMEncoder.from_folder(folder)
        assert len(out.model.layers) == 3  # type: ignore[arg-type]
        torch.testing.assert_close(out.encode([PROMPT], VIDEO).states[0], wanted, atol=1e-5, rtol=1e-5)


def test_released_counts(encoder: TextEncoder) -> None:
    """95, 36 and 103 tokens before the prompt; 576 positions a picture, of which 144 or 288 are kept; no header."""
    image = random_image(50, 50)
    prompt_tokens = len(encoder.llm.tokenizer(PROMPT, add_special_tokens=False)["input_ids"])
    assert encoder.encode([PROMPT]).states.shape[1] == prompt_tokens + 1  # eot
    assert encoder.image_encoder.encode([image]).shape[1] == IMAGE_TOKENS == 576
    for subsample, kept in ((4, 144), (2, 288)):
        features = encoder.encode([PROMPT], images=[image], subsample=subsample)
        assert features.states.shape[1] == kept + prompt_tokens + 1  # the line break after the header
        assert bool(features.mask.all())


def test_each_sample_of_a_batch_sees_its_own_picture(encoder: TextEncoder) -> None:
    """Different pictures and lengths together (one prompt too long) give what each gives alone."""
    images = [random_image(40, 60, 1), random_image(60, 40, 2), random_image(40, 60, 1)]
    prompts = [PROMPT, "a cat", "red circle " * 400]
    together = encoder.encode(prompts, images=images)
    for row, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        alone = encoder.encode([prompt], images=[image])
        length = alone.states.shape[1]
        assert int(together.mask[row].sum()) == length
        torch.testing.assert_close(together.states[row, :length], alone.states[0], atol=1e-5, rtol=1e-5)
    assert (together.states[0, :144] - together.states[1, :144]).abs().max() > 1e-2
    torch.testing.assert_close(together.states[0, :144], together.states[2, :144], atol=1e-5, rtol=1e-5)


def test_a_long_prompt_loses_the_header_and_as_many_words(llava_dir: Path, clip_dir: Path) -> None:
    encoder = TextEncoder.from_folder(llava_dir, clip_dir, short_templates(8))
    features = encoder.encode(["a large red circle moves right on a black background"], images=[random_image(30, 30)])
    # Eight places; the four that a header would take are cut from the prompt's own end (release fact D.4).
    assert features.states.shape[1] == 144 + 4
    assert features.truncated == ["moves right on a black background"]


def test_image_markers_and_blank_lines_in_a_prompt_do_no_harm(encoder: TextEncoder) -> None:
    image = random_image(30, 30)
    features = encoder.encode(["a <image> cat\n\nand\n\na dog"], images=[image])
    assert bool(features.states.isfinite().all())
    header = encoder.llm.tokenizer("<|eot_id|><|start_header_id|>assistant<|end_header_id|>", add_special_tokens=False)
    assert len(header["input_ids"]) == 4
    ids = encoder.llm.tokenizer("a <image> cat\n\nand\n\na dog", add_special_tokens=False)["input_ids"]
    assert features.states.shape[1] == 144 + len(ids) + 1


def test_int8_halves_the_language_model_and_stays_close(llava_dir: Path, clip_dir: Path, encoder: TextEncoder) -> None:
    small = TextEncoder.from_folder(llava_dir, clip_dir, precision="int8")
    half = TextEncoder.from_folder(llava_dir, clip_dir, precision="float16")
    exact = encoder.encode([PROMPT]).states
    linear = small.llm.model.layers[0].mlp.up_proj  # type: ignore[index, union-attr]
    assert linear.weight.dtype == torch.int8  # type: ignore[union-attr]
    assert small.nbytes < encoder.nbytes
    assert half.nbytes < encoder.nbytes
    assert half.encode(["a"]).states.dtype == torch.float16
    error = (small.encode([PROMPT]).states - exact).abs().max() / exact.abs().max()
    assert 0 < error < 0.05
    with pytest.raises(UserError, match="int4"):
        TextEncoder.from_folder(llava_dir, clip_dir, precision="int4")


def test_extraction_writes_the_official_folder(llava_dir: Path, clip_dir: Path, tmp_path: Path) -> None:
    """Float16 LlamaForCausalLM with the tokenizer, whole or in shards, that transformers reads without a complaint."""
    sizes: list[int] = []
    extract_language_model(llava_dir, tmp_path / "one", written=sizes.append)
    extract_language_model(llava_dir, tmp_path / "many", shard_bytes=max(sizes))
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["LlamaForCausalLM"], "llama")
    shards = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 2
    assert set(
        json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())["weight_map"].values()
    ) == set(shards)
    source = load_file(llava_dir / "model.safetensors")
    for folder in ("one", "many"):
        model, report = LlamaForCausalLM.from_pretrained(str(tmp_path / folder), output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        weight = source["language_model.model.layers.4.mlp.up_proj.weight"]
        assert torch.equal(model.model.layers[4].mlp.up_proj.weight, weight.half())
        assert torch.equal(model.lm_head.weight, source["language_model.lm_head.weight"].half())
    assert TextEncoder.from_folder(tmp_path / "one", clip_dir).encode([PROMPT]).states.shape[2] == 32
    assert not is_llava(tmp_path / "one")


def test_extraction_refuses_what_has_no_language_model(llm_dir: Path, llava_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a LLaVA"):
        extract_language_model(llm_dir, tmp_path / "out")
    with pytest.raises(UserError, match="onto itself"):
        extract_language_model(llava_dir, llava_dir)
    shutil.copytree(llava_dir, tmp_path / "cut")
    state = load_file(llava_dir / "model.safetensors")
    del state["language_model.model.layers.4.mlp.up_proj.weight"]
    save_file(state, tmp_path / "cut" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"layers\.4\.mlp\.up_proj"):
        extract_language_model(tmp_path / "cut", tmp_path / "out")


def test_a_missing_shard_is_named(llava_dir: Path, tmp_path: Path) -> None:
    extract_language_model(llava_dir, tmp_path / "many", shard_bytes=20_000)
    (tmp_path / "many" / "model-00002-of-00003.safetensors").unlink(missing_ok=True)
    gone = sorted((tmp_path / "many").glob("*.safetensors"))[-1]
    gone.unlink()
    with pytest.raises(UserError, match="shards, the first is"):
        LLMEncoder.from_folder(tmp_path / "many")


def test_a_language_model_without_eyes_says_so(llm_dir: Path, clip_dir: Path) -> None:
    blind = TextEncoder.from_folder(llm_dir, clip_dir)
    assert not blind.sees_images
    with pytest.raises(UserError, match=r"sees no pictures|template"):
        blind.encode([PROMPT], images=[random_image(8, 8)])


def test_preparation_comes_from_the_folder(llava_dir: Path, tmp_path: Path) -> None:
    image = random_image(61, 97)
    beside = tmp_path / "text_encoder"
    shutil.copytree(llava_dir, beside)
    (tmp_path / "image_processor").mkdir()
    shutil.move(beside / "preprocessor_config.json", tmp_path / "image_processor" / "preprocessor_config.json")
    one, two = (ImagePreparation.from_folder(folder)(image) for folder in (llava_dir, beside))
    assert torch.equal(one, two)
    assert one.shape == (3, 48, 48)
    (tmp_path / "image_processor" / "preprocessor_config.json").write_text('{"size": {"longest_edge": 3}}')
    with pytest.raises(UserError, match="preprocessor_config"):
        ImagePreparation.from_folder(beside)
    (tmp_path / "image_processor" / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"no preprocessor_config\.json"):
        ImageEncoder.from_folder(beside)


def test_pictures_that_are_the_same_are_encoded_once(encoder: TextEncoder) -> None:
    image, black = random_image(30, 40), Image.new("RGB", (40, 30))
    tokens = encoder.image_encoder.encode([black, image, image])
    assert torch.equal(tokens[1], tokens[2])
    assert not torch.equal(tokens[0], tokens[1])


def test_a_template_without_a_picture_is_refused(encoder: TextEncoder) -> None:
    plain = PromptTemplate(VIDEO.text, VIDEO.crop_start, I2V.max_tokens)
    with pytest.raises(UserError, match="no image token"):
        encoder.llm.encode_with_images([PROMPT], plain, torch.zeros(1, 4, 32), encoder.image_encoder.image_token, 4)
