"""Costs: a text's, a task's and the user's own; what is wrong with one is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import captured

from drawplate.analysis.sensitivity import measure
from drawplate.calibration import Calibration, Question
from drawplate.costs import samples, users_cost
from drawplate.errors import PassError
from drawplate.passbase import Env
from drawplate.passes.allocate_bits import AllocateBits
from drawplate.runner import run_passes

TEXT = Calibration.of(torch.randint(3, 97, (4, 16), generator=torch.Generator().manual_seed(0)), "random")
QUESTION = Question((((5, 6, 7), (8, 9)), ((5, 6, 7), (10,)), ((5, 6), (11, 12, 13))), (4, 3, 9), 1)
ENTROPY = "import torch\n\ndef entropy(logits, ids):\n    p = logits.softmax(-1)\n    return -(p * p.log()).sum()\n"


def test_a_task_s_cost_is_the_share_that_its_right_answer_has() -> None:
    program = captured("llama")
    (sample,) = samples("choices", program, TEXT.asking([QUESTION], "task"), 64, 0)
    logits = [program.module()(*inputs) for inputs in sample.inputs]
    scores = []
    for (given, rest), characters in zip(QUESTION.choices, QUESTION.characters, strict=True):
        logs = program.module()(torch.tensor([[*given, *rest]]), torch.arange(len(given + rest))[None]).log_softmax(-1)
        total = sum(float(logs[0, len(given) - 1 + i, token]) for i, token in enumerate(rest))
        scores.append(total / characters)
    expected = -torch.tensor(scores).log_softmax(0)[QUESTION.answer]
    assert float(sample.cost(logits)) == pytest.approx(float(expected), rel=1e-5)


def test_bits_follow_the_task() -> None:
    program, text = captured("llama"), TEXT.asking([QUESTION], "task")
    stored = {
        cost: run_passes(
            program, [AllocateBits("5bpw", cost, bits=(2, 3, 4, 5, 6, 8), group=(1, 16))], Env(calibration=text)
        ).program.encodings
        for cost in ("kl", "choices")
    }
    assert stored["kl"] != stored["choices"]


def test_a_function_of_the_user_s_is_a_cost(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(ENTROPY)
    name, program = f"{tmp_path}/mine.py:entropy", captured("llama")
    found = measure(program, samples(name, program, TEXT, 32, 0), Env())
    assert found.tokens == 32
    assert all(float(r.rows.sum()) > 0 for readings in found.readings.values() for r in readings)
    assert AllocateBits("6bpw", name).reads == (tmp_path / "mine.py",)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("def cost(logits, ids):\n    return 1 / 0", "ZeroDivisionError: division by zero"),
        ("def cost(logits, ids):\n    return logits.sum() * float('nan')", "the cost is not a finite number"),
        ("def cost(logits, ids):\n    return logits.detach().sum()", "the cost does not depend on the logits"),
        ("def cost(logits):\n    return 0", "takes 1 positional argument but 2 were given"),
    ],
)
def test_a_cost_that_fails_is_told(body: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(body)
    allocate = AllocateBits("6bpw", f"{tmp_path}/mine.py:cost", bits=(4, 8), group=(1, 16))
    with pytest.raises(PassError) as error:
        run_passes(captured("llama"), [allocate], Env(calibration=TEXT))
    assert what in str(error.value)


def test_a_cost_that_is_not_there_is_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def other(): ...")
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    env = Env(calibration=TEXT)
    for name, what in {
        "kll": "no cost 'kll'",
        f"{tmp_path}/none.py:cost": "there is no file",
        f"{tmp_path}/mine.py:cost": "there is no function 'cost'",
        f"{tmp_path}/broken.py:cost": "No module named 'nothing_of_this_name'",
        "choices": "cost=choices needs a task, and there is none",
    }.items():
        with pytest.raises(PassError) as error:
            AllocateBits("6bpw", name).check_env(env)
        assert what in str(error.value)


def test_what_is_no_python_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("cost")
    with pytest.raises(PassError, match="is no Python file"):
        users_cost(f"{tmp_path}/notes.txt:cost")
