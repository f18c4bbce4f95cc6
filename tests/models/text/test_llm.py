"""The language model as a text encoder, against the whole model run by transformers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaModel

from openhunyuan.base.errors import UserError
from openhunyuan.models.text.llm import LLMEncoder, lost_words
from openhunyuan.models.text.templates import PromptTemplate, read_templates

PROMPTS = ["a large red circle moves right", "a star", ""]


@pytest.fixture(scope="module")
def template(llm_dir: Path) -> PromptTemplate:
    found = read_templates(llm_dir)
    assert found is not None
    return found.video


@pytest.mark.parametrize("skip", [1, 2, 3])
def test_states_are_the_whole_models_hidden_state(llm_dir: Path, template: PromptTemplate, skip: int) -> None:
    whole = LlamaForCausalLM.from_pretrained(str(llm_dir)).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(llm_dir))
    ours = LLMEncoder.from_folder(llm_dir, skip=skip).encode(PROMPTS, template)
    for row, prompt in enumerate(PROMPTS):
        inputs = tokenizer(template.format(prompt), return_tensors="pt")
        with torch.no_grad():
            hidden = whole(**inputs, output_hidden_states=True).hidden_states[-(skip + 1)][0, template.crop_start :]
        valid = ours.states[row][ours.mask[row]]
        assert valid.shape == hidden.shape
        torch.testing.assert_close(valid, hidden, atol=1e-5, rtol=1e-5)


def test_the_crop_leaves_exactly_prompt_and_end(llm_dir: Path, template: PromptTemplate) -> None:
    encoder = LLMEncoder.from_folder(llm_dir)
    out = encoder.encode(PROMPTS, template)
    lengths = [len(encoder.tokenizer(prompt, add_special_tokens=False)["input_ids"]) + 1 for prompt in PROMPTS]
    assert out.mask.sum(1).tolist() == lengths
    assert lengths[-1] == 1  # the empty prompt still has its end token
    assert out.states.shape == (3, max(lengths), 32)


def test_padding_does_not_change_valid_states(llm_dir: Path, template: PromptTemplate) -> None:
    encoder = LLMEncoder.from_folder(llm_dir)
    together = encoder.encode(PROMPTS, template)
    for row, prompt in enumerate(PROMPTS):
        alone = encoder.encode([prompt], template)
        assert bool(alone.mask.all())
        length = alone.states.shape[1]
        torch.testing.assert_close(together.states[row, :length], alone.states[0], atol=1e-5, rtol=1e-5)
        assert torch.count_nonzero(together.states[row, length:]) == 0
        assert not bool(together.mask[row, length:].any())


def test_only_needed_layers_are_loaded(llm_dir: Path, template: PromptTemplate, tmp_path: Path) -> None:
    wanted = LLMEncoder.from_folder(llm_dir).encode(PROMPTS, template)
    folder = tmp_path / "prefix"
    shutil.copytree(llm_dir, folder)
    state = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in state.items() if ".layers.3." not in k and ".layers.4." not in k and "lm_head" not in k}
    assert len(kept) < len(state)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    encoder = LLMEncoder.from_folder(folder)
    assert len(encoder.model.layers) == 3  # type: ignore[arg-type]
    torch.testing.assert_close(encoder.encode(PROMPTS, template).states, wanted.states, atol=0, rtol=0)

    del kept["model.layers.2.mlp.up_proj.weight"]
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"layers\.2\.mlp\.up_proj"):
        LLMEncoder.from_folder(folder)


def test_a_bare_model_folder_gives_the_same(llm_dir: Path, template: PromptTemplate, tmp_path: Path) -> None:
    folder = tmp_path / "text_encoder"
    LlamaModel.from_pretrained(str(llm_dir)).save_pretrained(str(folder))
    # Diffusers layout: the tokenizer lies in a folder of its own beside the model.
    (tmp_path / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(llm_dir / name, tmp_path / "tokenizer" / name)
    one = LLMEncoder.from_folder(folder).encode(PROMPTS, template)
    two = LLMEncoder.from_folder(llm_dir).encode(PROMPTS, template)
    torch.testing.assert_close(one.states, two.states, atol=0, rtol=0)


def test_truncation_names_the_lost_words(llm_dir: Path, template: PromptTemplate) -> None:
    encoder = LLMEncoder.from_folder(llm_dir)
    budget = template.crop_start + 5
    short = PromptTemplate(template.text, template.crop_start, budget)
    out = encoder.encode(["A large red circle moves right on a black background", "a star"], short)
    assert out.lost == ["right on a black background", ""]
    assert out.states.shape[1] == 5
    # A word that is cut inside counts as lost as a whole.
    out = encoder.encode(["a red zebra"], PromptTemplate(template.text, template.crop_start, template.crop_start + 4))
    assert out.lost == ["zebra"]


def test_lost_words_counts_from_the_word_start() -> None:
    assert lost_words("red circle", 10) == ""
    assert lost_words("red circle  ", 10) == ""
    assert lost_words("red circle", 3) == "circle"
    assert lost_words("red circle", 6) == "circle"
    assert lost_words("red circle", 1) == "red circle"
    assert lost_words("red circle", -5) == "red circle"


def test_a_wrong_crop_is_refused(llm_dir: Path, template: PromptTemplate) -> None:
    encoder = LLMEncoder.from_folder(llm_dir)
    encoder.check_template(template)
    with pytest.raises(UserError, match="crop_start"):
        encoder.check_template(PromptTemplate(template.text, template.crop_start + 1, template.max_tokens))


def test_surrounding_line_breaks_do_not_move_the_crop(llm_dir: Path, template: PromptTemplate) -> None:
    encoder = LLMEncoder.from_folder(llm_dir)
    plain, spaced = encoder.encode(["a star"], template), encoder.encode(["\n a star\n\n"], template)
    torch.testing.assert_close(plain.states, spaced.states, atol=0, rtol=0)


def test_unusable_folders_are_refused(llm_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        LLMEncoder.from_folder(tmp_path / "none")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    LlamaConfig().save_pretrained(str(pickled))
    torch.save({"a": torch.zeros(1)}, pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        LLMEncoder.from_folder(pickled)
    broken = tmp_path / "broken"
    shutil.copytree(llm_dir, broken)
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="truncated"):
        LLMEncoder.from_folder(broken)
    with pytest.raises(UserError, match="skip"):
        LLMEncoder.from_folder(llm_dir, skip=5)
