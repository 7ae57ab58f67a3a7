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
# any will do
SOME_DAY = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"


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
        backend.no_truncation()  # a file may say how its own users cut and fill texts up; here they are whole
        backend.no_padding()
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

    def special(self, name: str) -> int | None:
        """Id of a special token by its role, "bos_token" or "eos_token", as tokenizer_config.json names it."""
        found: int | None = self.backend.token_to_id(self._special_tokens()[name])
        return found

    def chat(self, messages: Sequence[Message], *, reply: bool = True) -> list[int]:
        """Token ids of a conversation under the model's own template, ready for the assistant's answer if `reply`.

        messages: {"role": "system" | "user" | "assistant", "content": text}. Raises EvaluationError without a template.
        """
        return self.encode(self.render(messages, reply=reply))

    def render(self, messages: Sequence[Message], *, reply: bool = True, today: bool = True) -> str:
        """The conversation as the text that chat() encodes. today: a template that asks for the date gets it; else
        always the same one, so that what is trained on does not depend on the day. Raises EvaluationError if the
        template refuses the messages, too."""
        template = self.chat_template
        if template is None:
            raise EvaluationError(
                "this model has no chat template",
                where=str(self.folder),
                why="neither chat_template.jinja nor a chat_template in tokenizer_config.json",
                fix="give it plain text to continue instead",
            )
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        conversations: Any = [[dict(m) for m in messages]]
        known: dict[str, Any] = self._special_tokens()
        if not today:
            template = SOME_DAY + template
        try:
            rendered: Any = render_jinja_template(
                conversations, chat_template=template, add_generation_prompt=reply, **known
            )[0]
        except TemplateError as error:
            raise EvaluationError("the chat template refuses", where=str(self.folder), why=str(error)) from error
        return str(rendered[0])

    def _special_tokens(self) -> dict[str, Any]:
        """Written as text or as {"content": text, ..} in tokenizer_config.json; empty where it names none."""
        config = _read_json(self.folder / "tokenizer_config.json")
        tokens = {k: config.get(k) or "" for k in ("bos_token", "eos_token", "unk_token", "pad_token")}
        return {k: t.get("content", "") if isinstance(t, dict) else t for k, t in tokens.items()}


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
