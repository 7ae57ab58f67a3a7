"""Programs as Runnables, and generation."""

import pytest
import torch

from drawplate.errors import EvaluationError
from drawplate.runtime import ProgramRunner, Rewindable, Sampling, generate, nucleus

IDS = torch.tensor([5, 9, 200, 31, 7, 7, 100])


def whole(program, ids):
    """Logits [n, vocab] of a plain program in one pass."""
    with torch.no_grad():
        return program.module()(ids[None], torch.arange(len(ids))[None])[0]


@pytest.mark.parametrize("sizes", [[7], [1] * 7, [3, 1, 2, 1]])
def test_a_program_in_steps_is_the_program_in_one_pass(plain, cached, sizes):
    for program in (plain, cached):
        runner = ProgramRunner(program)
        logits = torch.cat([runner.step(part) for part in IDS.split(sizes)])
        torch.testing.assert_close(logits, whole(plain, IDS))


def test_a_last_position_program_answers_for_the_last_position(plain, last):
    logits = ProgramRunner(last).step(IDS)
    torch.testing.assert_close(logits, whole(plain, IDS)[-1:])


@pytest.mark.parametrize("form", ["plain", "cached"])
def test_reset_and_rewind_forget(plain, form, request):
    runner = ProgramRunner(request.getfixturevalue(form))
    runner.step(torch.tensor([250, 3, 4]))
    runner.reset()
    runner.step(IDS[:4])
    runner.step(torch.tensor([77, 78]))
    runner.rewind(4)
    torch.testing.assert_close(runner.step(IDS[4:]), whole(plain, IDS)[4:])
    assert isinstance(runner, Rewindable)


def test_a_full_context_is_an_error(cached):
    runner = ProgramRunner(cached)
    assert runner.context == 64
    runner.step(torch.ones(60, dtype=torch.int64))
    with pytest.raises(EvaluationError) as caught:
        runner.step(torch.ones(5, dtype=torch.int64))
    assert str(caught.value) == (
        "the context is full: 60 tokens were fed and 5 more do not fit\n"
        "  why:   this model was compiled for a context of 64 tokens\n"
        "  do:    shorten the text, or compile with a larger context"
    )
    with pytest.raises(EvaluationError, match="nothing to feed"):
        runner.step(torch.empty(0, dtype=torch.int64))


def test_greedy_generation_is_the_same_plain_cached_and_last(plain, cached, last):
    wanted = IDS.tolist()
    for _ in range(10):
        wanted.append(int(whole(plain, torch.tensor(wanted))[-1].argmax()))
    for program in (plain, cached, last):
        seen = []
        made = generate(ProgramRunner(program), IDS.tolist(), 10, on_token=seen.append)
        assert list(made.ids) == seen == wanted[7:]
        assert made.stopped == "length"
        assert len(made.margins) == 10
        assert min(made.margins) >= 0
        assert 0 < made.first_seconds <= made.seconds


def test_generation_stops_at_an_end_token_and_at_the_context(cached):
    runner = ProgramRunner(cached)
    ids = generate(runner, IDS.tolist(), 10).ids
    ended = generate(runner, IDS.tolist(), 10, eos=(ids[3],))
    assert ended.stopped == "end"
    assert ended.ids == ids[: ids.index(ids[3]) + 1]
    full = generate(runner, [1] * 60, 10)
    assert full.stopped == "context"
    assert len(full.ids) == 5  # four are fed again, the fifth is not


def test_sampling_is_seeded_and_stays_in_the_nucleus(cached):
    runner = ProgramRunner(cached)
    one = generate(runner, IDS.tolist(), 20, sampling=Sampling(1.0, 0.9, seed=3))
    again = generate(runner, IDS.tolist(), 20, sampling=Sampling(1.0, 0.9, seed=3))
    another = generate(runner, IDS.tolist(), 20, sampling=Sampling(1.0, 0.9, seed=4))
    assert one.ids == again.ids != another.ids
    narrow = generate(runner, IDS.tolist(), 20, sampling=Sampling(1.0, 1e-9, seed=5))
    assert narrow.ids == generate(runner, IDS.tolist(), 20).ids
    p = torch.tensor([0.1, 0.4, 0.2, 0.3])
    assert nucleus(p, 1.0)[1].tolist() == [1, 3, 2, 0]
    assert nucleus(p, 0.65)[1].tolist() == [1, 3]


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_sampling_options_are_checked(wrong):
    with pytest.raises(EvaluationError, match=r"a temperature is at least 0 and top-p lies in \(0, 1\]"):
        Sampling(**wrong)
