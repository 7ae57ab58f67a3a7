"""Text to token ids and back, from a model folder's tokenizer.json.

The `tokenizers` library reads that file in about a second without importing torch or transformers; transformers is
imported only to render a chat template.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

from drawplate.errors import EvaluationError

Message = Mapping[str, str]


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer. folder: where it came from. prefix: ids that it puts in front of a text (such as <bos>)."""

    folder: Path
    backend: tokenizers.Tokenizer = field(repr=False, compare=False)
    prefix: tuple[int, ...] = ()

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read folder/tokenizer.json. Raises EvaluationError when it is missing or not a tokenizer."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise EvaluationError(
                "no tokenizer.json",
                where=str(folder),
                why="text is turned into tokens with the model's own tokenizer, in the tokenizers library's format",
                fix="save it next to the model: AutoTokenizer.from_pretrained(...).save_pretrained(folder)",
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise EvaluationError("tokenizer.json cannot be read", where=str(path), why=str(error)) from error
        encoded = backend.encode("a", add_special_tokens=True)
        prefix: list[int] = []
        for token, special in zip(encoded.ids, encoded.special_tokens_mask, strict=True):
            if not special:
                break
            prefix.append(token)
        return cls(folder, backend, tuple(prefix))

    def encode(self, text: str) -> list[int]:
        """Token ids of the text alone: no prefix, but special tokens written out in the text are recognised."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text, special tokens left out. Bytes that are no character come back as U+FFFD."""
        return str(self.backend.decode([int(i) for i in ids], skip_special_tokens=True))

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Text piece by piece as ids arrive; a character whose bytes are spread over several tokens comes when whole.

        The pieces joined are decode(ids).
        """
        decoder = tokenizers.decoders.DecodeStream(skip_special_tokens=True)
        seen: list[int] = []
        given = ""
        for token in ids:
            seen.append(int(token))
            piece = decoder.step(self.backend, int(token))
            if piece:
                given += piece
                yield piece
        rest = self.decode(seen)
        if rest.startswith(given) and len(rest) > len(given):
            yield rest[len(given) :]

    @property
    def chat_template(self) -> str | None:
        """The folder's Jinja template for conversations, if it has one."""
        path = self.folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        config = _read_json(self.folder / "tokenizer_config.json").get("chat_template")
        if isinstance(config, list):  # several named templates: the one called "default"
            config = next((t["template"] for t in config if t["name"] == "default"), None)
        return config

    def chat(self, messages: Sequence[Message], *, reply: bool = True) -> list[int]:
        """Token ids of a conversation under the model's own template, ready for the assistant's answer if `reply`.

        messages: {"role": "system" | "user" | "assistant", "content": text}. Raises EvaluationError without a template.
        """
        template = self.chat_template
        if template is None:
            raise EvaluationError(
                "this model has no chat template",
                where=str(self.folder),
                why="neither chat_template.jinja nor a chat_template in tokenizer_config.json",
                fix="give it plain text to continue instead",
            )
        from transformers.utils.chat_template_utils import render_jinja_template

        config = _read_json(self.folder / "tokenizer_config.json")
        special: dict[str, Any] = {
            k: _content(config.get(k)) for k in ("bos_token", "eos_token", "unk_token", "pad_token")
        }
        conversations: Any = [[dict(m) for m in messages]]
        rendered, _ = render_jinja_template(
            conversations, chat_template=template, add_generation_prompt=reply, **special
        )
        return self.encode("".join(rendered))


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _content(token: Any) -> str:
    """A special token is written as text or as {"content": text, ..}."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")
