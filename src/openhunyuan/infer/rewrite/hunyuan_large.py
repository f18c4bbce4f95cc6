"""The layout of the released rewriter, HunyuanVideo-PromptRewrite: a Hunyuan-Large folder (release fact H).

Its ``config.json`` names code that comes with the weights; that code is not run. transformers knows a younger member
of the family (``hunyuan_v1_moe``), and this file says what is different in the older one:

- cross-layer attention: of ``cla_share_factor`` layers only the first has ``k_proj`` and ``v_proj``; the others take
  its keys and values as they are before the rotary embedding, and have a ``key_layernorm`` of their own;
- with ``moe_topk`` 1 an expert's output is scaled by the router's probability, which transformers normalises to 1;
- the shared expert is ``num_shared_expert`` times as wide as a routed one;
- the tokenizer is ``hy.tiktoken``: byte pairs by rank, one a line, then 5 + 205 special tokens.

Sources: the report on Hunyuan-Large (arXiv 2411.02265) and the names and shapes of its public implementation. The full
model has 389 billion parameters, some 780 GB in bfloat16: one machine rarely holds it, and a server that spreads it
over several (see ``endpoint``) is the practical way to use it.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from openhunyuan.base.errors import UserError
from openhunyuan.base.record import read_json
from openhunyuan.models.text.folder import load_tokenizer, load_weights, quiet_transformers

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WHAT = "rewriter"
VOCABULARY = "hy.tiktoken"
_SPECIALS = ("<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>")
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What transformers' config of the family has under the same name.
_SAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "attention_bias",
    "num_experts",
    "moe_topk",
    "rope_theta",
    "rope_scaling",
)


def is_hunyuan_large(config: dict[str, Any]) -> bool:
    """Whether a config.json is of the older family member, whose architecture is called HunYuanForCausalLM."""
    return config.get("model_type") == "hunyuan" or "HunYuanForCausalLM" in (config.get("architectures") or ())


def load_hunyuan_large(folder: Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """The model and its tokenizer. ``UserError`` for a variant of the family that this does not cover."""
    values = read_json(folder / "config.json")
    config = _config(values, folder)
    model = load_weights(_model_class(values), folder, config, dtype, WHAT)
    return model, _load_tokenizer(folder, int(config.vocab_size))


def _config(values: dict[str, Any], folder: Path) -> Any:
    """transformers' config of the younger member with the older one's values."""
    from transformers import HunYuanMoEV1Config

    for name, wanted in (("use_qk_norm", True), ("use_mixed_mlp_moe", True), ("use_pack_kv", False)):
        if values.get(name, wanted) != wanted:
            raise UserError(f"{folder / 'config.json'} has {name} = {values[name]}; only {wanted} can be read.")
    for name in ("num_experts", "moe_topk", "num_shared_expert", "cla_share_factor"):
        if not isinstance(values.get(name, 1), int):
            raise UserError(f"{folder / 'config.json'} has {name} = {values[name]}; only one whole number can be read.")
    known = {name: values[name] for name in _SAME if values.get(name) is not None}
    try:
        head_dim = int(values.get("attention_head_dim") or values["hidden_size"] // values["num_attention_heads"])
        # It warns of the rotary embedding's alpha, which it reads all the same.
        with quiet_transformers():
            return HunYuanMoEV1Config(**known, head_dim=head_dim)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"The config.json of the {WHAT} folder {folder} cannot be used: {error}") from None


def _model_class(values: dict[str, Any]) -> Any:
    """The younger member with the older one's differences, as a class for ``from_pretrained``."""
    from transformers import HunYuanMoEV1ForCausalLM

    share = int(values.get("cla_share_factor") or 1) if values.get("use_cla") else 1
    shared_experts = int(values.get("num_shared_expert") or 1)

    class HunyuanLarge(HunYuanMoEV1ForCausalLM):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            layers: Any = self.model.layers
            for index, layer in enumerate(layers):
                first = layers[index - index % share].self_attn
                if index % share:
                    layer.self_attn.k_proj = _Echo(first.k_proj)
                    layer.self_attn.v_proj = _Echo(first.v_proj)
                if config.moe_topk == 1:
                    layer.mlp.gate.register_forward_hook(_probabilities)
                if shared_experts != 1:
                    layer.mlp.shared_mlp = _wide(layer.mlp.shared_mlp, shared_experts)

    return HunyuanLarge


class _Echo(nn.Module):
    """Gives what another projection gave in this pass, whatever it is given itself."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self._last: list[Tensor] = []
        source.register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._last[:] = [output]

    def forward(self, _hidden_states: Tensor) -> Tensor:
        return self._last[0]


def _probabilities(_gate: nn.Module, _inputs: Any, output: Any) -> Any:
    """(logits, weights, experts) of a top-1 router, with the chosen expert's probability as its weight."""
    logits, weights, experts = output
    return logits, logits.float().softmax(-1).gather(-1, experts).to(weights.dtype), experts


def _wide(mlp: Any, factor: int) -> nn.Module:
    """The same gated MLP, ``factor`` times as wide inside."""
    for name in ("gate_proj", "up_proj"):
        old = getattr(mlp, name)
        setattr(mlp, name, nn.Linear(old.in_features, old.out_features * factor, bias=False))
    old = mlp.down_proj
    mlp.down_proj = nn.Linear(old.in_features * factor, old.out_features, bias=False)
    return mlp


def _load_tokenizer(folder: Path, vocab_size: int) -> Any:
    """The tokenizer: a fast one if somebody saved it, else built from ``hy.tiktoken``."""
    if (folder / "tokenizer.json").is_file() or not (folder / VOCABULARY).is_file():
        return load_tokenizer(folder, "tokenizer", WHAT)
    from transformers import PreTrainedTokenizerFast

    path = folder / "tokenizer_config.json"
    values = read_json(path) if path.is_file() else {}
    named = {
        name: values[name] for name in ("bos_token", "eos_token", "pad_token") if isinstance(values.get(name), str)
    }
    defaults = {"bos_token": "<|startoftext|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=read_tiktoken(folder / VOCABULARY, vocab_size),
        chat_template=values.get("chat_template"),
        clean_up_tokenization_spaces=False,
        **{**defaults, **named},
    )


def read_tiktoken(path: Path, vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer from lines of ``<token in base64> <rank>``, the special tokens after the last rank.

    Raises:
        UserError: a line of another form, or more ranks than the vocabulary has tokens.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    try:
        tokens = [base64.b64decode(line.split()[0], validate=True) for line in path.read_bytes().splitlines() if line]
    except (ValueError, IndexError):
        raise UserError(f"{path} is not a list of byte pairs (token in base64 and rank on each line).") from None
    if len(set(tokens)) != len(tokens) or len(tokens) + len(_SPECIALS) > vocab_size:
        raise UserError(f"{path} has {len(tokens)} tokens, but they must be different and leave room in {vocab_size}.")

    letters = _byte_letters()
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for token in tokens:
        # A token's merge is the pair that merging by rank leaves when only earlier ranks are allowed.
        parts = _merge(token, ranks, ranks[token])
        if len(parts) == 2:
            merges.append(("".join(letters[byte] for byte in parts[0]), "".join(letters[byte] for byte in parts[1])))
    vocabulary = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    extras = [f"<|extra_{index}|>" for index in range(vocab_size - len(tokens) - len(_SPECIALS))]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in [*_SPECIALS, *extras]])
    return tokenizer


def _merge(token: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    """The parts of ``token`` after merging neighbours by rank, using ranks under ``below`` only."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 1:
        pairs = [(ranks.get(parts[i] + parts[i + 1], below), i) for i in range(len(parts) - 1)]
        rank, i = min(pairs)
        if rank >= below:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def _byte_letters() -> list[str]:
    """The printable letter that byte-level BPE writes for each byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) if byte in plain else chr(256 + others.index(byte)) for byte in range(256)]
