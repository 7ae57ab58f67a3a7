"""A model as lm-eval sees one, so that its tasks run on Programs and on artifacts. Needs the extra `lm-eval`.

import lm_eval
from drawplate.lm_eval_adapter import DrawplateLM
lm_eval.simple_evaluate(DrawplateLM(artifact.open(session), tokenizer), tasks=["piqa"])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drawplate.errors import EvaluationError

try:
    from lm_eval.api.model import LM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise EvaluationError(
        "lm-eval is not installed",
        why=str(error),
        fix="pip install 'drawplate[lm-eval]'; perplexity and choice tasks need nothing: drawplate.evaluation",
    ) from error

from drawplate.evaluate.choices import continuation
from drawplate.evaluate.sources import Model, Request, source_of
from drawplate.passbase import Progress
from drawplate.program import Program
from drawplate.progress import quiet
from drawplate.runtime import ProgramRunner, Runnable, Sampling, stream
from drawplate.tokens import Tokenizer

WINDOW = 2048  # tokens, for a model without a limit of its own


class DrawplateLM(LM):  # type: ignore[misc]
    """model: a Program or a Runnable. eos: ids that end a generation (None: the tokenizer's own).

    What does not fit the model's context is cut off on the left, as lm-eval's own models do.
    """

    def __init__(
        self, model: Model, tokenizer: Tokenizer, *, eos: Sequence[int] | None = None, progress: Progress = quiet
    ) -> None:
        super().__init__()
        self._model, self._tokenizer, self._progress = model, tokenizer, progress
        self._source = source_of(model)
        self._window = self._source.context or WINDOW
        end = tokenizer.special("eos_token")
        self._eos = tuple(eos) if eos is not None else () if end is None else (end,)
        starts = [*tokenizer.prefix, tokenizer.special("bos_token"), end]
        self._start = next((token for token in starts if token is not None), None)

    @property
    def tokenizer_name(self) -> str:
        return self._tokenizer.folder.name

    def chat_template(self, chat_template: bool | str = False) -> str:
        return (self._tokenizer.chat_template or "") if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self._tokenizer.render(chat_history, reply=add_generation_prompt)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """(log-probability of the continuation, was it the greedy one) for each (context, continuation)."""
        asked = [self._cut(self._pair(*r.args)) for r in requests]
        return [(s.logprob, s.greedy) for s in self._source.score(asked, self._progress)]

    def _pair(self, context: str, text: str) -> Request:
        if context or self._tokenizer.prefix:
            return continuation(self._tokenizer, context, text)
        return [self._first()], self._tokenizer.encode(text)

    def _first(self) -> int:
        """What stands in front of a text of which every token is asked for."""
        if self._start is None:
            raise EvaluationError(
                "a text without a context",
                where=str(self._tokenizer.folder),
                why="nothing predicts its first token: this tokenizer has neither a prefix, a <bos> nor an <eos>",
            )
        return self._start

    def _cut(self, request: Request) -> Request:
        """The request with the beginning of its context left out if it would not fit; one token of it always stays."""
        context, rest = list(request[0]), list(request[1])
        room = max(1, self._window + 1 - len(rest))
        return context[-room:], rest

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Log-probability of each whole text, in disjoint windows of the model's context."""
        asked: list[Request] = []
        counts = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(
                self._tokenizer.encode(text), self._first(), max_seq_len=self._window, context_len=1
            )
            pieces = [make_disjoint_window(window) for window in windows]
            asked += [(context, rest) for context, rest in pieces]
            counts.append(len(pieces))
        scores = iter(self._source.score(asked, self._progress))
        return [sum(next(scores).logprob for _ in range(n)) for n in counts]

    def generate_until(self, requests: list[Any]) -> list[str]:
        """What each (context, options) is continued with, up to a stop string, an end token or max_gen_toks."""
        runnable = ProgramRunner(self._model) if isinstance(self._model, Program) else self._model
        return [self._generate(runnable, *r.args) for r in self._progress(requests, "texts")]

    def _generate(self, runnable: Runnable, context: str, options: dict[str, Any]) -> str:
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        limit = min(int(options.get("max_gen_toks", 256)), self._window - 1)
        sampled = options.get("do_sample", float(options.get("temperature") or 0) > 0)
        sampling = Sampling(float(options.get("temperature") or 1), float(options.get("top_p") or 1))
        prompt = [*self._tokenizer.prefix, *self._tokenizer.encode(context)] or [self._first()]
        prompt = prompt[-(self._window - limit) :]
        ids: list[int] = []
        text = ""
        for token, _ in stream(runnable, prompt, sampling if sampled else None):
            if token in self._eos:
                break
            ids.append(token)
            text = self._tokenizer.decode(ids)
            found = [text.index(stop) for stop in stops if stop in text]
            if found:
                return text[: min(found)]
            if len(ids) >= limit:
                break
        return text
