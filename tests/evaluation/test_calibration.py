"""Text as token windows."""

import pytest
import torch

from drawplate.calibration import Calibration, load_text
from drawplate.errors import EvaluationError


@pytest.fixture
def prose(tmp_path):
    path = tmp_path / "prose.txt"
    path.write_text("".join(f"line {i:04d}.\n" for i in range(100)))  # 11 bytes each
    return path


def test_windows_do_not_overlap_and_keep_the_order(prose, tokenizer):
    found = load_text(prose, tokenizer, length=11)
    assert found.windows.shape == (100, 11)
    assert [tokenizer.decode(w) for w in found.windows[:2]] == ["line 0000.\n", "line 0001.\n"]
    assert found.source == "prose.txt"
    assert found.tokens == 1100
    assert [len(b) for b in found.batches(30)] == [30, 30, 30, 10]
    first = load_text(prose, tokenizer, length=11, count=3)
    assert torch.equal(first.windows, found.windows[:3])


def test_a_seed_draws_the_same_windows_each_time(prose, tokenizer):
    one, again = (load_text(prose, tokenizer, 11, 5, seed=1) for _ in range(2))
    other = load_text(prose, tokenizer, 11, 5, seed=2)
    assert torch.equal(one.windows, again.windows)
    assert one.digest == again.digest != other.digest
    numbers = [int(tokenizer.decode(w)[5:9]) for w in one.windows]
    assert numbers == sorted(set(numbers))


def test_the_digest_is_of_the_tokens_and_their_shape(prose, tokenizer):
    found = load_text(prose, tokenizer, 11, 4)
    assert Calibration.of(found.windows.clone(), "elsewhere").digest == found.digest
    assert Calibration.of(found.windows.view(2, 22), "elsewhere").digest != found.digest


def test_the_tokenizers_prefix_opens_every_window(prose, prefixing):
    windows = load_text(prose, prefixing, 12, 2).windows
    assert windows[:, 0].tolist() == [256, 256]
    assert [prefixing.decode(w) for w in windows] == ["line 0000.\n", "line 0001.\n"]


def test_a_short_text_says_how_much_there_is(prose, tokenizer):
    with pytest.raises(EvaluationError) as caught:
        load_text(prose, tokenizer, length=500, count=3)
    assert str(caught.value) == (
        "the text is too short: 1100 tokens\n"
        f"  where: {prose}\n"
        "  why:   3 windows of 500 tokens were asked for, and they do not overlap\n"
        "  do:    ask for 2 windows (1000 tokens) or fewer, or give more text"
    )
    with pytest.raises(EvaluationError, match="give a text of"):
        load_text(prose, tokenizer, length=5000)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the text is empty"),
        (b" \n\n", "the text is empty"),
        (b"caf\xe9 au lait", r"the text is not UTF-8\n  where: .*, byte 3\n  why:   invalid continuation byte: 0xe9"),
        (None, "the text cannot be read\n  where: .*\n  why:   No such file or directory"),
    ],
)
def test_what_is_no_text_is_a_clear_error(tmp_path, tokenizer, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EvaluationError, match=message):
        load_text(path, tokenizer, 8)


def test_windows_must_be_windows(prose, tokenizer):
    with pytest.raises(EvaluationError, match="a window has at least 2 tokens"):
        load_text(prose, tokenizer, 1)
    with pytest.raises(EvaluationError, match=r"token windows of shape \[7\]"):
        Calibration.of(torch.zeros(7), "x")
