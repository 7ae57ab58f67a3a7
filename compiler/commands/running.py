"""`drawplate run`: text out of an artifact, or out of a model before it is compiled."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from drawplate.commands.options import AsJson, Threads
from drawplate.commands.output import Output

if TYPE_CHECKING:
    from drawplate.commands.models import Opened
    from drawplate.runtime import Generation, Sampling
    from drawplate.tokens import Message


def run(
    source: Annotated[str, typer.Argument(metavar="ARTIFACT", help="An artifact's folder, or a model.")],
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="What to say. Without it: a conversation.")
    ] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="Put the prompt into the chat template, if there is one.")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Most tokens of an answer.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", "-t", help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Sample from the likeliest tokens of this share.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same text.")] = 0,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Generate text from an artifact in its runtime on this host (or from a model, which is slow: it has no cache).

    The text goes to stdout as it comes, the speed to stderr.
    """
    from drawplate.commands.models import open_model
    from drawplate.commands.sessions import open_session
    from drawplate.errors import EvaluationError
    from drawplate.runtime import Sampling

    with Output(as_json) as out:
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        if prompt is None and as_json:
            raise EvaluationError(
                "--json needs a prompt", why="a conversation is no one document", fix="add --prompt TEXT"
            )
        sampling = Sampling(temperature, top_p, seed)
        opened = open_model(source, open_session(out), out)
        chat = opened.tokenizer.chat_template is not None if chat is None else chat
        out.stop()
        if prompt is None:
            _converse(opened, chat, max_tokens, sampling, out)
            return
        ids = opened.tokenizer.chat([_said("user", prompt)]) if chat else _continued(opened, prompt)
        made, text = _answer(opened, ids, max_tokens, sampling, quiet=as_json)
        data = {
            "prompt": prompt,
            "text": text,
            "prompt_tokens": len(ids),
            "tokens": len(made.ids),
            "stopped": made.stopped,
        }
        out.give(data | {"first_seconds": made.first_seconds, "seconds": made.seconds})
        out.note(_speed(made, len(ids)))


def _said(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def _continued(opened: Opened, prompt: str) -> list[int]:
    tokenizer = opened.tokenizer
    return [*tokenizer.prefix, *tokenizer.encode(prompt)]


def _answer(
    opened: Opened, ids: list[int], max_tokens: int, sampling: Sampling, *, quiet: bool
) -> tuple[Generation, str]:
    """Generate, writing the text to stdout piece by piece unless quiet."""
    from drawplate.runtime import generate

    tokenizer, seen, shown = opened.tokenizer, [], ""

    def write(token: int) -> None:
        nonlocal shown
        seen.append(token)
        text = tokenizer.decode(seen)
        if not text.endswith("\ufffd"):  # the rest of a character is still to come
            sys.stdout.write(text[len(shown) :])
            sys.stdout.flush()
            shown = text

    made = generate(opened.runnable, ids, max_tokens, opened.eos, sampling, None if quiet else write)
    text = tokenizer.decode(made.ids)
    if not quiet:
        sys.stdout.write(text[len(shown) :] + "\n")
    return made, text


def _converse(opened: Opened, chat: bool, max_tokens: int, sampling: Sampling, out: Output) -> None:
    """One answer per line of stdin, until it ends. With a chat template the conversation is remembered."""
    messages: list[Message] = []
    if sys.stdin.isatty():
        out.note("Say something; end with Ctrl-D.")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not line.strip():
            continue
        messages.append(_said("user", line))
        ids = opened.tokenizer.chat(messages) if chat else _continued(opened, line)
        made, text = _answer(opened, ids, max_tokens, sampling, quiet=False)
        messages.append(_said("assistant", text))
        out.note(_speed(made, len(ids)))


def _speed(made: Generation, prompt_tokens: int) -> str:
    rest = len(made.ids) - 1
    rate = f", then {rest / (made.seconds - made.first_seconds):.1f} tokens/s" if rest else ""
    first = f"first new token after {1000 * made.first_seconds:.0f} ms"
    return f"[{prompt_tokens} prompt tokens, {first}{rate}; end: {made.stopped}]"
