"""The two tokenizers of the small text models: byte-level BPE, trained here, saved as ordinary Hugging Face folders.

Both know every byte, so a word never seen in training becomes several tokens and nothing is lost. Both fold upper case
to lower case: a vocabulary of a few hundred tokens should not be spent on "Red" beside "red".
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from openhunyuan.base.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BOS, EOS, EOT, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|pad|>"
HEADER_OPEN, HEADER_CLOSE = "<|start_header_id|>", "<|end_header_id|>"
LLM_SPECIALS = (BOS, EOS, HEADER_OPEN, HEADER_CLOSE, EOT, PAD)
CLIP_BOS, CLIP_EOS, CLIP_PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"
# The end token comes last: readers that look for the highest id of a row and readers that look for the id both find it.
CLIP_SPECIALS = (CLIP_PAD, CLIP_BOS, CLIP_EOS)

# How Llama-3 cuts text before BPE: English contractions, letters with one leading character, up to three digits,
# punctuation with its line breaks, line breaks, blanks. A word keeps the blank before it, so it can be one token.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_llm_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train the language model's tokenizer; it prepends the BOS token, as Llama-3's does.

    Args:
        texts: plain training text, without special tokens.
        vocab_size: size of the vocabulary with the 256 bytes and the special tokens; training may stop below it.
    """
    from tokenizers import processors

    tokenizer = _train(texts, vocab_size, LLM_SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def train_clip_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train the CLIP tokenizer: blanks are collapsed, and the text stands between a start and an end token."""
    from tokenizers import Regex, normalizers, processors

    tokenizer = _train(texts, vocab_size, CLIP_SPECIALS)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLIP_BOS} $A {CLIP_EOS}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (CLIP_BOS, CLIP_EOS)],
    )
    return tokenizer


def save_llm_tokenizer(folder: Path, tokenizer: Tokenizer, max_tokens: int) -> None:
    """Write tokenizer.json and tokenizer_config.json of the language model into ``folder``."""
    _save(folder, tokenizer, {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}, max_tokens)


def save_clip_tokenizer(folder: Path, tokenizer: Tokenizer, max_tokens: int) -> None:
    """Write tokenizer.json and tokenizer_config.json of the CLIP text model into ``folder``."""
    _save(folder, tokenizer, {"bos_token": CLIP_BOS, "eos_token": CLIP_EOS, "pad_token": CLIP_PAD}, max_tokens)


def _train(texts: Iterable[str], vocab_size: int, specials: tuple[str, ...]) -> Tokenizer:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    smallest = 256 + len(specials)
    if vocab_size < smallest:
        raise UserError(f"A byte-level vocabulary needs at least {smallest} tokens, not {vocab_size}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Added after training, so that the special ids follow the ordinary ones, as in Llama-3 and CLIP.
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials])
    return tokenizer


def _save(folder: Path, tokenizer: Tokenizer, names: dict[str, str], max_tokens: int) -> None:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        # This class name is understood by transformers 4 and 5 alike.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        **names,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
