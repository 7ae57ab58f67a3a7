"""lm-eval's own evaluator on local tasks, against the same numbers from drawplate.evaluation."""

import builtins
import json
import sys

import pytest
import torch

from drawplate.errors import EvaluationError
from drawplate.evaluation import Item, choices
from drawplate.runtime import ProgramRunner, generate

ROWS = [
    {"prompt": "ab:", "choices": ["xy", "xyz", "q"], "answer": 0},
    {"prompt": "a:", "choices": ["b", "c"], "answer": 1},
    {"prompt": "longer prompt:", "choices": ["b", "and more"], "answer": 1},
    {"prompt": "a:", "choices": ["xyzxyz", "xyz"], "answer": 0},
]
CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/rows.jsonl}, cache_dir: FOLDER/cache}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
ROLLING = """
task: local_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/rows.jsonl}, cache_dir: FOLDER/cache}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: byte_perplexity}]
"""
GENERATE = """
task: local_generate
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/rows.jsonl}, cache_dir: FOLDER/cache}
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{greedy}}"
generation_kwargs: {until: ["STOP"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def text_of(row: int) -> str:
    return ["short", "a text that is longer than the context of sixty-four tokens, so that it takes two windows"][
        row % 2
    ]


@pytest.mark.filterwarnings("ignore")  # lm-eval's and datasets' own
@pytest.mark.parametrize("form", ["plain", "cached", "last"])
def test_local_tasks_give_our_numbers(plain, form, tokenizer, tmp_path, request):
    lm_eval = pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    from lm_eval.tasks import TaskManager

    from drawplate.lm_eval_adapter import DrawplateLM

    model = request.getfixturevalue(form)
    (tokenizer.folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>", "eos_token": "<eos>"}))
    greedy = [tokenizer.decode(generate(ProgramRunner(plain), tokenizer.encode(r["prompt"]), 8).ids) for r in ROWS]
    rows = [{**r, "text": text_of(i), "greedy": greedy[i]} for i, r in enumerate(ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name, text in (("choice", CHOICE), ("rolling", ROLLING), ("generate", GENERATE)):
        (tasks / f"{name}.yaml").write_text(text.replace("FOLDER", str(tmp_path)))
    found = lm_eval.simple_evaluate(
        DrawplateLM(model, tokenizer),
        tasks=["local_choice", "local_rolling", "local_generate"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
    )["results"]

    items = [Item(r["prompt"], tuple(" " + c for c in r["choices"]), r["answer"]) for r in ROWS]
    ours = choices(model, items, tokenizer)
    assert found["local_choice"]["acc,none"] == pytest.approx(ours.accuracy.value)
    assert found["local_choice"]["acc_norm,none"] == pytest.approx(ours.accuracy_normalised.value)
    assert found["local_generate"]["exact_match,none"] == 1

    total = sum(logprob(plain, tokenizer, text_of(i)) for i in range(len(ROWS)))
    length = sum(len(text_of(i)) for i in range(len(ROWS)))
    assert found["local_rolling"]["byte_perplexity,none"] == pytest.approx(
        float(torch.tensor(-total / length).exp()), rel=1e-4
    )


def logprob(program, tokenizer, text):
    """Of the text behind <bos>, in windows of 64 predictions; the last window starts 64 before the end."""
    ids = [256, *tokenizer.encode(text)]
    total, done = 0.0, 0
    while done < len(ids) - 1:
        start = max(0, min(done, len(ids) - 1 - 64)) if done else 0
        window = torch.tensor(ids[start : start + 64])
        with torch.no_grad():
            logits = program.module()(window[None], torch.arange(len(window))[None])[0]
        targets = torch.tensor(ids[start + 1 : start + 65])
        values = torch.log_softmax(logits, -1).gather(-1, targets[:, None])[:, 0]
        total += float(values[done - start :].sum())
        done = start + len(targets)
    return total


def test_without_lm_eval_the_extra_is_named(monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "lm_eval":
            raise ImportError("No module named 'lm_eval'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "drawplate.lm_eval_adapter", raising=False)
    with pytest.raises(EvaluationError) as caught:
        import drawplate.lm_eval_adapter  # noqa: F401
    assert str(caught.value) == (
        "lm-eval is not installed\n"
        "  why:   No module named 'lm_eval'\n"
        "  do:    pip install 'drawplate[lm-eval]'; perplexity and choice tasks need nothing: drawplate.evaluation"
    )
