"""Choice tasks: scores against a token-by-token sum by hand, formats, few-shot, comparisons."""

import json

import pytest
import torch

from drawplate.errors import EvaluationError
from drawplate.evaluate.choices import continuation
from drawplate.evaluate.sources import Score, shared_rows, source_of
from drawplate.evaluation import Item, choices, load_items
from drawplate.progress import quiet
from drawplate.runtime import ProgramRunner
from drawplate.text import parse_program

ITEMS = tuple(
    Item(prompt, options, answer)
    for prompt, options, answer in [
        ("ab:", (" xy", " xyz", " q"), 0),
        ("a:", (" b", " c"), 1),
        ("longer prompt:", (" b", " and more"), 1),
        ("a:", (" xyzxyz", " xyz"), 0),
    ]
)


def by_hand(program, context, rest):
    """Sum of log p over the continuation, one pass per token."""
    module, ids, total, greedy = program.module(), list(context), 0.0, True
    for token in rest:
        with torch.no_grad():
            logits = module(torch.tensor([ids]), torch.arange(len(ids))[None])[0, -1]
        total += float(torch.log_softmax(logits, -1)[token])
        greedy &= int(logits.argmax()) == token
        ids.append(token)
    return Score(total, greedy)


class Forgetful:
    """A Runnable that cannot rewind."""

    def __init__(self, program):
        self._runner = ProgramRunner(program)
        self.context, self.reset, self.step = self._runner.context, self._runner.reset, self._runner.step


@pytest.mark.parametrize("form", ["plain", "cached", "last", "plain runner", "cannot rewind"])
def test_scores_are_those_by_hand(plain, cached, last, tokenizer, form):
    requests = [continuation(tokenizer, item.prompt, c) for item in ITEMS for c in item.choices]
    best = plain.module()(torch.tensor([[7]]), torch.zeros(1, 1, dtype=torch.int64))[0, 0].argmax()
    requests.append(([7], [int(best)]))
    model = {
        "plain": plain,
        "cached": cached,
        "last": last,
        "plain runner": ProgramRunner(plain),
        "cannot rewind": Forgetful(cached),
    }[form]
    scores = source_of(model).score(requests, quiet)
    for score, request in zip(scores, requests, strict=True):
        wanted = by_hand(plain, *request)
        assert score.logprob == pytest.approx(wanted.logprob, rel=1e-4)
        assert score.greedy == wanted.greedy
    assert scores[-1].greedy


def test_what_begins_another_sequence_is_not_run_again():
    requests = [([1, 2], [3]), ([1, 2], [4]), ([1, 2], [3, 5, 6]), ([2], [1, 1]), ([1], [2, 9])]
    rows = shared_rows(requests)
    assert [row.ids for row in rows] == [[2, 1], [1, 2, 3, 5]]
    assert sorted(rows[1].requests) == [0, 1, 2, 4]


@pytest.mark.parametrize("form", ["plain", "cached", "last"])
def test_accuracy_raw_and_per_character(plain, tokenizer, form, request):
    report = choices(request.getfixturevalue(form), ITEMS, tokenizer, task="tiny")
    right, normalised = [], []
    for item in ITEMS:
        sums = [by_hand(plain, *continuation(tokenizer, item.prompt, c)).logprob for c in item.choices]
        right.append(max(range(len(sums)), key=sums.__getitem__) == item.answer)
        per = [s / len(c.strip()) for s, c in zip(sums, item.choices, strict=True)]
        normalised.append(max(range(len(per)), key=per.__getitem__) == item.answer)
    assert report.right == tuple(right)
    assert report.right_normalised == tuple(normalised)
    assert report.accuracy.value == sum(right) / 4
    assert report.longest == 0.5
    assert (report.task, report.shots, report.accuracy.n) == ("tiny", 0, 4)


def test_two_models_are_compared_item_by_item(plain, other, tokenizer):
    one, two = (choices(model, ITEMS, tokenizer) for model in (plain, other))
    same = one.against(one)
    assert (same.difference.value, same.difference.error, same.p) == (0, 0, 1)
    found = two.against(one, normalised=False)
    assert found.gained - found.lost == sum(two.right) - sum(one.right)
    with pytest.raises(EvaluationError, match="two reports on different items"):
        two.against(choices(plain, ITEMS, tokenizer, count=2))


def test_examples_are_other_items_with_their_answers_and_the_same_for_every_model(plain, tokenizer, monkeypatch):
    asked = []

    def listen(items, label):
        return items

    original = continuation
    monkeypatch.setattr("drawplate.evaluate.choices.continuation", lambda t, p, c: asked.append(p) or original(t, p, c))
    for _ in range(2):
        choices(plain, ITEMS, tokenizer, count=1, shots=2, seed=3, progress=listen)
    first, again = asked[:3], asked[3:]
    assert first == again
    assert first[0].endswith("\n\nab:")
    solved = {i.prompt + i.choices[i.answer] for i in ITEMS[1:]}
    examples = first[0].split("\n\n")[:-1]
    assert len(set(examples)) == 2
    assert set(examples) <= solved


def test_the_cut_between_prompt_and_choice(tokenizer, prefixing):
    assert continuation(tokenizer, "ab", " c") == (tokenizer.encode("ab"), tokenizer.encode(" c"))
    assert continuation(tokenizer, "ab ", "c") == (tokenizer.encode("ab"), tokenizer.encode(" c"))
    assert continuation(prefixing, "", "c") == ([256], prefixing.encode("c"))
    with pytest.raises(EvaluationError, match="nothing in front of 'c'"):
        continuation(tokenizer, "", "c")


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_both_formats_are_read(tmp_path):
    path = write(
        tmp_path / "items.jsonl",
        {"prompt": "2 + 2 =", "choices": [" 4", " 5"], "answer": 0},
        "",
        {"prompt": "2 + 3 =", "choices": [" 4", " 5"], "answer": " 5"},
        {"question": "ice\nbox", "options": "A. add B. water \nB. add soda", "answer": "A. add B. water "},
    )
    assert load_items(path) == (
        Item("2 + 2 =", (" 4", " 5"), 0),
        Item("2 + 3 =", (" 4", " 5"), 1),
        Item("Question: ice\nbox\nAnswer:", (" add B. water", " add soda"), 0),
    )


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("{", "Expecting property name"),
        ({"prompt": "a", "choices": ["b", "c"]}, "'answer' is missing"),
        ({"prompt": "a", "choices": ["b", "c"], "answer": 2}, "answer 2 of 2 choices"),
        ({"prompt": "a", "choices": ["b", "c"], "answer": "d"}, "answer 'd' is none of the choices"),
        ({"prompt": "a", "choices": ["b"], "answer": 0}, "at least two"),
        ({"question": "a", "options": "A. b\nB. c", "answer": "A. c"}, "answer 'A. c' is none of"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, row, why):
    path = write(tmp_path / "items.jsonl", {"prompt": "a", "choices": ["b", "c"], "answer": 0}, row)
    with pytest.raises(EvaluationError, match=rf"not a multiple-choice item\n  where: .*, line 2\n  why:   .*{why}"):
        load_items(path)


def test_no_task_is_a_clear_error(tmp_path):
    with pytest.raises(EvaluationError, match="the task cannot be read"):
        load_items(tmp_path / "none.jsonl")
    with pytest.raises(EvaluationError, match="the task has no items"):
        load_items(write(tmp_path / "empty.jsonl", ""))


def test_what_does_not_fit_is_a_clear_error(texts, tokenizer):
    small = parse_program(texts(context=16))
    with pytest.raises(EvaluationError) as caught:
        choices(small, ITEMS, tokenizer, task="tiny", shots=0)
    assert str(caught.value) == (
        "an item of 23 tokens does not fit\n"
        "  where: tiny, 0 examples\n"
        "  why:   the model's context is 16 tokens\n"
        "  do:    give fewer examples, or compile with a larger context"
    )
    with pytest.raises(EvaluationError, match="4 examples and 4 questions from a task of 4 items"):
        choices(small, ITEMS, tokenizer, shots=4)
