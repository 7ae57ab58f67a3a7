"""An artifact against its Program, in separate processes."""

import json

import pytest
import torch

from drawplate.errors import EvaluationError
from drawplate.parity import distance, parity

PROMPTS = [[3, 50, 120, 7], [200, 1, 1, 9, 30, 31, 32]]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("form", ["plain", "cached"])
def test_the_same_program_is_at_rounding_distance(subject, texts, form, last, request):
    program = request.getfixturevalue(form)
    found = parity(program, subject(texts(last=last)), PROMPTS, new_tokens=6, threads=1)
    assert (found.equal, found.differences, found.prompts, found.new_tokens) == (2, (), 2, 6)
    assert json.loads(json.dumps(found.as_json()))["stepwise"]["positions"] == found.stepwise.positions
    assert found.stepwise.positions == 4 + 6 + 7 + 6
    assert found.prefill.positions == (2 if last else 4 + 7)
    for part in (found.stepwise, found.prefill, found.floor):
        assert part.relative_max < 1e-5
        assert part.kl_max < 1e-8
        assert part.agreement == 1
        assert len(part.relative) == part.positions


def test_another_model_is_found_out_with_its_margin(subject, texts, cached):
    found = parity(cached, subject(texts(seed=1)), PROMPTS, new_tokens=6, floor=False, threads=1)
    assert found.floor is None
    assert found.stepwise.relative_median > 0.01
    assert found.stepwise.kl_mean > 1e-4
    assert found.equal == 2 - len(found.differences)
    for difference in found.differences:
        prompt = PROMPTS[difference.prompt]
        reference = cached.module()
        assert difference.margin > 0
        assert difference.noise > 0
        assert difference.program_token != difference.artifact_token
        text = torch.tensor([prompt])
        with torch.no_grad():
            logits = reference(text, torch.arange(len(prompt)))[0, -1]
        if difference.step == 0:
            wanted = logits[difference.program_token] - logits[difference.artifact_token]
            assert difference.margin == pytest.approx(float(wanted), rel=1e-4)
            assert str(difference).startswith(
                f"prompt {difference.prompt}, new token 0: {difference.artifact_token} for"
            )


def test_margin_and_noise_are_of_the_logits_that_the_token_was_chosen_by(subject, texts, cached):
    """Fed token by token this artifact is exact; a prompt at once it answers otherwise, and so begins another text."""
    found = parity(cached, subject(texts(), opener="open_turned"), PROMPTS, new_tokens=3, floor=False, threads=1)
    assert found.stepwise.relative_max < 1e-5
    assert found.prefill.relative_median > 0.01
    for prompt, difference in zip(PROMPTS, found.differences, strict=True):
        with torch.no_grad():
            logits = cached.module()(torch.tensor([prompt]), torch.arange(len(prompt)))[0, -1]
        best = int(logits.argmax())
        assert (difference.step, difference.program_token, difference.artifact_token) == (0, best, (best + 1) % 258)
        assert difference.margin == pytest.approx(float(logits[best] - logits[(best + 1) % 258]), rel=1e-4)
        noise = (logits - logits.roll(1)).square().mean().sqrt()
        assert difference.noise == pytest.approx(float(noise), rel=1e-4)


def test_some_prompt_differs_at_once(subject, texts, cached):
    """Over many prompts, two models that differ must choose differently somewhere: the comparison is not blind."""
    prompts = [[i, i + 1, i + 2] for i in range(0, 60, 3)]
    found = parity(cached, subject(texts(seed=1)), prompts, new_tokens=4, floor=False, threads=1)
    assert found.differences
    assert found.stepwise.agreement < 1


def test_distance_by_hand():
    wanted = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    given = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    found = distance([(given[:1], wanted[:1]), (given[1:], wanted[1:])])
    assert found.relative == (0.0, 0.5)
    assert (found.relative_median, found.relative_max, found.absolute_max, found.agreement) == (0.25, 0.5, 1.0, 1.0)
    p, q = torch.softmax(wanted[1].double(), 0), torch.softmax(given[1].double(), 0)
    assert found.kl_max == pytest.approx(float((p * (p / q).log()).sum()))
    assert found.kl_mean == pytest.approx(found.kl_max / 2)


def test_no_prompts_are_an_error(subject, texts, cached):
    for prompts in ([], [[1], []]):
        with pytest.raises(EvaluationError, match="no prompts"):
            parity(cached, subject(texts(), str(len(prompts))), prompts)
