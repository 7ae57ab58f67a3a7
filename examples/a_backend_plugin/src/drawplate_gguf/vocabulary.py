"""The tokenizer's part of a GGUF file: tokens, merges, special tokens, chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf

from drawplate.errors import BackendError

# How text is split before the merges, as llama.cpp calls it (llama-vocab.cpp). Read off tokenizer.json's pre_tokenizer.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}NUMBERS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {_SPLIT.replace("NUMBERS", "{1,3}"): "llama-bpe", _SPLIT.replace("NUMBERS", ""): "qwen2"}


def write_vocabulary(writer: gguf.GGUFWriter, folder: Path, size: int) -> None:
    """The tokenizer in `folder`, padded to the `size` rows of the model's table. Raises BackendError if llama.cpp
    would split text in another way."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    model = tokenizer["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise BackendError(
            "this backend writes byte-level BPE tokenizers only",
            where=f"tokenizer.json: model {model['type']}" + (" with byte_fallback" * bool(model.get("byte_fallback"))),
            why="others need scores that tokenizer.json does not hold",
            fix="use another backend",
        )
    tokens, types = byte_level_tokens(tokenizer, size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(tokenizer.get("pre_tokenizer")))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    gguf.SpecialVocab(folder, load_merges=True, n_vocab=size).add_to_gguf(writer, quiet=True)


def byte_level_tokens(tokenizer: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """tokenizer.json -> the text and gguf.TokenType of each of `size` tokens, as convert_hf_to_gguf.py types them."""
    text = {i: t for t, i in tokenizer["model"]["vocab"].items()}
    added = {a["id"]: a for a in tokenizer.get("added_tokens", [])}
    text.update({i: a["content"] for i, a in added.items()})
    tokens, types = [], []
    for i in range(size):
        tokens.append(text.get(i, f"[PAD{i}]"))
        if i not in text:
            types.append(gguf.TokenType.UNUSED)
        elif i in added:
            types.append(gguf.TokenType.CONTROL if added[i]["special"] else gguf.TokenType.USER_DEFINED)
        else:
            types.append(gguf.TokenType.NORMAL)
    return tokens, types


def pre_tokenizer(description: dict[str, Any] | None) -> str:
    """llama.cpp's name for a byte-level pre-tokenizer. Raises BackendError on one that it may not have."""
    steps = (description or {}).get("pretokenizers", [description or {}])
    kinds = [s.get("type") for s in steps]
    spaced = any(s.get("add_prefix_space") for s in steps)
    if not spaced and kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if not spaced and kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1]["use_regex"]:
        return "smollm"
    if not spaced and kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        name = _SPLITS.get(steps[0]["pattern"].get("Regex", ""))
        if name and steps[0]["behavior"] == "Isolated" and not steps[0].get("invert"):
            return name
    raise BackendError(
        "this tokenizer splits text in a way that has no name in llama.cpp that we know of",
        where=f"tokenizer.json: pre_tokenizer ({', '.join(map(str, kinds))})",
        why="with another split the same text would give other tokens, and no one would be told",
        fix="use another backend, or add the split's name to drawplate_gguf/vocabulary.py",
    )
