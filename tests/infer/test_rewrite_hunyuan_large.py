"""The layout of the released rewriter (Hunyuan-Large): small random weights in it, against a plain second reading."""

import base64
import itertools
import json
import math
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import regex
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from openhunyuan.base.errors import UserError
from openhunyuan.infer.rewrite import local
from openhunyuan.infer.rewrite.hunyuan_large import _config, _model_class, read_tiktoken
from openhunyuan.infer.rewrite.local import LocalModel

CONFIG: dict[str, Any] = {
    "architectures": ["HunYuanForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_hunyuan.HunYuanForCausalLM"},
    "model_type": "hunyuan",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"},
    "attention_bias": False,
    "tie_word_embeddings": True,
    "use_qk_norm": True,
    "use_cla": True,
    "cla_share_factor": 2,
    "use_mixed_mlp_moe": True,
    "num_experts": 4,
    "num_shared_expert": 1,
    "moe_topk": 1,
    "eos_token_id": 3,
    "torch_dtype": "float32",
}
TEMPLATE = "{% for m in messages %}{{ m.content }}<|extra_0|>{% endfor %}"
# "th", "the", " the", "in", "ing": enough for merges of merges.
MERGED = [b"th", b"the", b" the", b"in", b"ing", "é".encode(), b"\xe4\xb8", "一".encode()]
TOKENS = [bytes([byte]) for byte in range(256)] + MERGED


def random_state(config: dict[str, Any]) -> dict[str, Tensor]:
    """Random weights under the names of the release, every expert and projection apart."""
    generator = torch.Generator().manual_seed(0)
    width, inner = config["hidden_size"], config["intermediate_size"]
    head = width // config["num_attention_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], width)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        shapes[f"{at}.input_layernorm.weight"] = shapes[f"{at}.post_attention_layernorm.weight"] = (width,)
        shapes[f"{at}.self_attn.q_proj.weight"] = shapes[f"{at}.self_attn.o_proj.weight"] = (width, width)
        if not config["use_cla"] or layer % config["cla_share_factor"] == 0:
            for name in ("k_proj", "v_proj"):
                shapes[f"{at}.self_attn.{name}.weight"] = (head * config["num_key_value_heads"], width)
        for name in ("query_layernorm", "key_layernorm"):
            shapes[f"{at}.self_attn.{name}.weight"] = (head,)
        shapes[f"{at}.mlp.gate.wg.weight"] = (config["num_experts"], width)
        mlps = {f"experts.{index}": inner for index in range(config["num_experts"])}
        mlps["shared_mlp"] = inner * config["num_shared_expert"]
        for name, size in mlps.items():
            shapes[f"{at}.mlp.{name}.gate_proj.weight"] = shapes[f"{at}.mlp.{name}.up_proj.weight"] = (size, width)
            shapes[f"{at}.mlp.{name}.down_proj.weight"] = (width, size)
    shapes["model.norm.weight"] = (width,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    state = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        state[name] = 1 + 0.2 * value if len(shape) == 1 else value / math.sqrt(shape[1])
    return state


def write_folder(folder: Path, **changes: Any) -> Path:
    """A folder as the release lays it out: config, two shards with an index, hy.tiktoken, code that must not run."""
    config = {**CONFIG, **changes}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    state = random_state(config)
    names = list(state)
    files = {name: f"model-0000{1 + (index % 2)}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: state[name] for name in names if files[name] == file}, folder / file)
    index = {"metadata": {"total_size": sum(t.numel() * 4 for t in state.values())}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(TOKENS)]
    (folder / "hy.tiktoken").write_text("\n".join(lines) + "\n")
    settings = {
        "tokenizer_class": "HYTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_hy.HYTokenizer", None]},
        "eos_token": "<|eos|>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    trap = f"open({str(folder / 'ran')!r}, 'w')"
    for name in ("modeling_hunyuan.py", "configuration_hunyuan.py", "tokenization_hy.py"):
        (folder / name).write_text(trap)
    return folder


def logits(state: dict[str, Tensor], config: dict[str, Any], ids: list[int]) -> Tensor:
    """What the architecture says, written down once more without classes: [L, vocabulary]."""
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    head = config["hidden_size"] // heads
    base = config["rope_theta"] * config["rope_scaling"]["alpha"] ** (head / (head - 2))
    angles = torch.arange(len(ids))[:, None] * base ** (-torch.arange(0, head, 2) / head)
    turn = torch.polar(torch.ones_like(angles), angles)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], state[name], config["rms_norm_eps"])

    def rotate(x: Tensor) -> Tensor:
        turned = torch.complex(*x.chunk(2, -1)) * turn
        return torch.cat([turned.real, turned.imag], -1)

    def split(x: Tensor, count: int) -> Tensor:
        return x.unflatten(-1, (count, head)).transpose(0, 1)

    def gated(x: Tensor, name: str) -> Tensor:
        gate, up, down = (state[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T

    x = state["model.embed_tokens.weight"][ids]
    keys = values = x
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        y = norm(x, f"{at}.input_layernorm.weight")
        if not config["use_cla"] or layer % config["cla_share_factor"] == 0:
            keys = split(y @ state[f"{at}.self_attn.k_proj.weight"].T, groups)
            values = split(y @ state[f"{at}.self_attn.v_proj.weight"].T, groups)
        q = norm(
            rotate(split(y @ state[f"{at}.self_attn.q_proj.weight"].T, heads)), f"{at}.self_attn.query_layernorm.weight"
        )
        k = norm(rotate(keys), f"{at}.self_attn.key_layernorm.weight")
        k, v = (t.repeat_interleave(heads // groups, 0) for t in (k, values))
        scores = (q @ k.mT / math.sqrt(head)).masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -math.inf)
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = x + mixed @ state[f"{at}.self_attn.o_proj.weight"].T
        y = norm(x, f"{at}.post_attention_layernorm.weight")
        chances = (y @ state[f"{at}.mlp.gate.wg.weight"].T).softmax(-1)
        rows = []
        for token, chance in zip(y, chances, strict=True):
            best = chance.topk(config["moe_topk"])
            weights = best.values if config["moe_topk"] == 1 else best.values / best.values.sum()
            experts = (gated(token, f"{at}.mlp.experts.{int(index)}") for index in best.indices)
            rows.append(sum(weight * expert for weight, expert in zip(weights, experts, strict=True)))
        x = x + gated(y, f"{at}.mlp.shared_mlp") + torch.stack(rows)  # type: ignore[arg-type]
    head_weight = state["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return norm(x, "model.norm.weight") @ head_weight.T


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"moe_topk": 2, "num_shared_expert": 2, "tie_word_embeddings": False},
        {"use_cla": False, "num_hidden_layers": 2},
        {"cla_share_factor": 4},
    ],
)
def test_logits_are_those_of_the_architecture(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = write_folder(tmp_path / "rewriter", **changes)
    chat = LocalModel.from_folder(folder, "cpu", "float32")
    ids = [5, 80, 2, 99, 7, 41, 260, 12]
    expected = logits(random_state({**CONFIG, **changes}), {**CONFIG, **changes}, ids)
    with torch.inference_mode():
        given = chat.model(torch.tensor([ids])).logits[0]
    assert expected.std() > 0.5
    torch.testing.assert_close(given, expected, atol=2e-4, rtol=1e-4)
    assert not (folder / "ran").exists(), "code of the folder was run"


def test_answers_with_a_cache_are_those_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MAX_NEW_TOKENS", 10)
    chat = LocalModel.from_folder(write_folder(tmp_path / "rewriter"), "cpu", "float32")
    state = random_state(CONFIG)
    ids = chat.tokenizer("the fox<|extra_0|>", add_special_tokens=False)["input_ids"]
    out: list[int] = []
    for _ in range(10):
        out.append(int(logits(state, CONFIG, ids + out)[-1].argmax()))
    out = out[: out.index(out[-1]) + 1]
    assert len(out) > 2
    chat.model.generation_config.eos_token_id = out[-1]
    given = chat.ask([{"role": "user", "content": "the fox"}])
    assert given == chat.tokenizer.decode(out, skip_special_tokens=True)


def test_the_released_size_is_389_billion() -> None:
    """The published sizes give the published number of parameters (report on Hunyuan-Large, table 1)."""
    full = {
        **CONFIG,
        "vocab_size": 128512,
        "hidden_size": 6400,
        "intermediate_size": 18304,
        "num_hidden_layers": 64,
        "num_attention_heads": 80,
        "num_key_value_heads": 8,
        "num_experts": 16,
    }
    with torch.device("meta"):
        model = _model_class(full)(_config(full, Path("x")))
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e9) == 389
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert "model.layers.0.self_attn.k_proj.weight" in shapes
    assert "model.layers.1.self_attn.k_proj.weight" not in shapes
    assert shapes["model.layers.63.self_attn.key_layernorm.weight"] == (80,)


def by_rank(text: str) -> list[int]:
    """tiktoken's rule: cut with the pattern, then merge the neighbours of lowest rank until none is known."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    ids = []
    for piece in regex.findall(pattern, text):
        parts = [bytes([byte]) for byte in piece.encode()]
        while True:
            joined = [a + b for a, b in itertools.pairwise(parts)]
            known = [(TOKENS.index(pair), at) for at, pair in enumerate(joined) if pair in TOKENS]
            if not known:
                break
            at = min(known)[1]
            parts[at : at + 2] = [joined[at]]
        ids += [TOKENS.index(part) for part in parts]
    return ids


@pytest.mark.parametrize("text", ["the thing in the inn", "Thé 一中 123\n\n  it's!", "e\u0301", ""])
def test_the_tokenizer_merges_by_rank(tmp_path: Path, text: str) -> None:
    tokenizer = read_tiktoken(write_folder(tmp_path / "rewriter") / "hy.tiktoken", 300)
    ids = tokenizer.encode(text).ids
    assert ids == by_rank(unicodedata.normalize("NFC", text))
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_special_tokens_follow_the_last_rank(tmp_path: Path) -> None:
    tokenizer = read_tiktoken(write_folder(tmp_path / "rewriter") / "hy.tiktoken", 300)
    start = len(TOKENS)
    names = ("<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>", "<|extra_0|>")
    assert [tokenizer.token_to_id(name) for name in names] == [start + index for index in range(6)]
    assert tokenizer.get_vocab_size() == 300
    assert tokenizer.encode("a<|extra_0|>").ids == [ord("a"), start + 5]


def test_what_is_not_covered_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "rewriter", use_pack_kv=True)
    with pytest.raises(UserError, match="use_pack_kv = True; only False can be read"):
        LocalModel.from_folder(folder, "cpu")
    (folder / "config.json").write_text(json.dumps({**CONFIG, "moe_topk": [1, 2, 1, 2]}))
    with pytest.raises(UserError, match=r"moe_topk = .* only one whole number"):
        LocalModel.from_folder(folder, "cpu")
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 5}))
    with pytest.raises(UserError, match="lack"):
        LocalModel.from_folder(folder, "cpu")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "hy.tiktoken").write_text("not base64!\n")
    with pytest.raises(UserError, match="not a list of byte pairs"):
        LocalModel.from_folder(folder, "cpu")
