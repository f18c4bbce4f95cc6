"""A Qwen2.5-VL folder as the captioner: a tiny random one, and one with weights set so that it answers in the form."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from openhunyuan.base.errors import UserError
from openhunyuan.caption import local
from openhunyuan.caption.captioner import caption_clips
from openhunyuan.caption.local import LocalVision, folder_name
from openhunyuan.caption.vision import ANSWER_SCHEMA, Vision
from openhunyuan.caption.vllm import VLLMVision
from openhunyuan.cli.main import main
from openhunyuan.curate.run import Plan, curate, read_clips
from tests.caption.test_captioner import GOOD
from tests.curate.films import save, shot

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
MESSAGES = [
    {"role": "system", "content": "Be exact."},
    {"role": "user", "content": ["two frames", *(np.full((40, 60, 3), level, np.uint8) for level in (0, 200))]},
]


def write_folder(folder: Path, answers: str | None = None) -> Path:
    """A Qwen2.5-VL of two layers, 32 wide, whose tokens are bytes. With ``answers`` its next token is that text after
    anything, and then the end."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    if answers is not None:
        tokenizer.add_tokens([AddedToken(answers, normalized=False)])
    ids = {name: tokenizer.token_to_id(name) for name in SPECIALS}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    ).save_pretrained(folder)
    pictures = {
        "image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "size": {"shortest_edge": 56 * 56, "longest_edge": 112 * 112},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": tokenizer.get_vocab_size(), "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
            "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"], "bos_token_id": None,
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    if answers is not None:
        said = tokenizer.token_to_id(answers)
        text = model.model.language_model
        with torch.no_grad():
            for layer in text.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            # Coordinate 0 says "something was said", coordinate 1 "the answer was said".
            text.embed_tokens.weight.zero_()
            text.embed_tokens.weight[:, 0] = 1
            text.embed_tokens.weight[said] = torch.eye(32)[1]
            model.lm_head.weight.zero_()
            model.lm_head.weight[said, 0] = 1
            model.lm_head.weight[ids["<|im_end|>"], 1] = 1
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("vision") / "random-vl")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local-captions")
    save(folder / "raw/a.mp4", shot(1, 16))
    curate(folder / "raw", folder / "data", Plan())
    return folder / "data"


def test_the_answer_is_what_greedy_decoding_gives_and_depends_on_the_frames(
    random_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seer = LocalVision.from_folder(random_folder, "cpu", "float32")
    seen: list[dict[str, Any]] = []
    generate = seer.model.generate
    monkeypatch.setattr(seer.model, "generate", lambda **options: seen.append(options) or generate(**options))
    monkeypatch.setattr(local, "MAX_NEW_TOKENS", 6)
    with pytest.raises(UserError, match="did not end within 6 tokens"):
        seer.ask(MESSAGES)
    inputs = {name: value for name, value in seen[0].items() if isinstance(value, torch.Tensor)}
    text = seer.processor.tokenizer.decode(inputs["input_ids"][0])
    assert text.startswith("<|im_start|>system\nBe exact.<|im_end|>\n<|im_start|>user\ntwo frames<|vision_start|>")
    assert text.endswith("<|im_start|>assistant\n")
    grids = inputs["image_grid_thw"]
    assert len(grids) == 2 and text.count("<|image_pad|>") == int(grids.prod(1).sum()) // 4
    # An independent pass over the same inputs, token by token without a cache; one with other frames differs.
    ids, out = inputs["input_ids"], []
    with torch.inference_mode():
        rest = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
        for _ in range(6):
            kinds = (ids == seer.model.config.image_token_id).int()
            logits = seer.model(input_ids=ids, mm_token_type_ids=kinds, use_cache=False, **rest).logits[:, -1]
            out.append(int(logits.argmax()))
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        first = seer.model(**inputs, use_cache=False).logits[:, -1]
        other = seer.model(**{**inputs, "pixel_values": -rest["pixel_values"]}, use_cache=False).logits[:, -1]
    assert not torch.allclose(first, other)
    seer.model.generation_config.eos_token_id = out[-1]
    expected = out[: out.index(out[-1]) + 1]
    assert seer.ask(MESSAGES) == seer.processor.tokenizer.decode(expected, skip_special_tokens=True)


def test_a_random_model_leaves_a_record_of_its_failure(
    random_folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local, "MAX_NEW_TOKENS", 4)
    options = ["--captioner", "transformers", "--caption-model", str(random_folder), "--device", "cpu"]
    assert main(["caption", str(data), *options, "--frames", "2", "--side", "64", "--dtype", "float32"]) == 2
    assert "did not end within 4 tokens" in capsys.readouterr().err
    seer = LocalVision.from_folder(random_folder, "cpu", "float32")
    captioner = Vision(model=folder_name(random_folder), frames=2, side=64).at(seer)
    with pytest.raises(UserError, match="ask again with --retry"):
        caption_clips(data, captioner)  # the failure is known, and the model is not asked again


def test_a_model_that_answers_in_the_form(data: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "answering-vl", json.dumps(GOOD))
    options = ["--captioner", "transformers", "--caption-model", str(folder), "--device", "cpu", "--frames", "2"]
    assert main(["caption", str(data), *options, "--dtype", "float32"]) == 0
    (clip,) = read_clips(data)
    assert (clip.captions[-1].captioner, clip.captions[-1].text) == ("vision", GOOD["dense"])
    assert clip.captions[-1].fields["shot_type"] == "wide shot"


def test_folders_that_are_no_captioner(tmp_path: Path, random_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, said in (
        (["--captioner", "transformers"], "needs --caption-model"),
        (["--captioner", "transformers", "--caption-model", str(tmp_path / "none")], "does not exist"),
        (["--captioner", "transformers", "--caption-model", str(tmp_path)], "has no config.json"),
        (["--captioner", "vllm"], "needs --endpoint with its address, or --caption-model"),
        (["--captioner", "measured", "--window", "3"], "needs a captioner that sees"),
        (["--captioner", "transformers", "--endpoint", "http://localhost:1"], "endpoint or vllm only"),
        (["--camera-gate", "1.5"], "camera_gate"),
    ):
        assert main(["caption", str(tmp_path), *options]) == 2
        error = capsys.readouterr().err.strip()
        assert said in error and len(error.splitlines()) == 1
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "model.safetensors"):
        (broken / name).write_bytes((random_folder / name).read_bytes())
    with pytest.raises(UserError, match="processor of the captioner folder"):
        LocalVision.from_folder(broken, "cpu")
    (broken / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="holds a llama, which transformers does not know as a model of pictures"):
        LocalVision.from_folder(broken, "cpu")


def test_vllm_is_asked_with_the_schema_and_missing_it_is_one_sentence(
    random_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises((UserError, ModuleNotFoundError), match="vllm"):
        VLLMVision.from_folder(random_folder, 2)
    made: dict[str, Any] = {}

    class Engine:
        """Answers as vLLM's engine does; what it was made with is looked at."""

        def __init__(self, **options: Any) -> None:
            made["engine"] = options

        def chat(self, turns: list[Any], sampling_params: Any, use_tqdm: bool) -> list[Any]:
            made["turns"], made["sampling"] = turns, sampling_params
            reason = "stop" if len(turns) == 2 else "length"
            return [SimpleNamespace(outputs=[SimpleNamespace(text=json.dumps(GOOD), finish_reason=reason)])]

    package, parameters = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    package.LLM, package.SamplingParams = Engine, lambda **options: options  # type: ignore[attr-defined]
    parameters.StructuredOutputsParams = lambda **options: options  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", parameters)
    seer = VLLMVision.from_folder(random_folder, 2)
    assert json.loads(seer.ask(MESSAGES)) == GOOD
    assert made["engine"]["limit_mm_per_prompt"] == {"image": 2} and made["engine"]["trust_remote_code"] is False
    assert made["sampling"]["structured_outputs"] == {"json": ANSWER_SCHEMA}
    assert [part["type"] for part in made["turns"][1]["content"]] == ["text", "image_url", "image_url"]
    with pytest.raises(UserError, match="did not end"):
        seer.ask([*MESSAGES, MESSAGES[0]])
