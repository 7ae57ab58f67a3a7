"""Text to tokens and back."""

import json

import pytest

from drawplate.errors import EvaluationError
from drawplate.tokens import Tokenizer

TEXTS = ["plain words", "naïve café — 日本語 🙂", "", " space\n\nlines\t"]


@pytest.mark.parametrize("text", TEXTS)
def test_decode_undoes_encode_and_the_stream_is_its_pieces(tokenizer, text):
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    pieces = list(tokenizer.stream(ids))
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert all(pieces)


def test_a_stream_that_ends_within_a_character_says_so(tokenizer):
    ids = tokenizer.encode("ab🙂")[:-1]
    assert "".join(tokenizer.stream(ids)) == tokenizer.decode(ids) == "ab\ufffd"


def test_special_tokens_are_read_but_not_written(tokenizer):
    ids = tokenizer.encode("<bos>a<eos>")
    assert (ids[0], ids[-1], len(ids)) == (256, 257, 3)
    assert tokenizer.decode(ids) == "a"


def test_the_prefix_is_what_the_tokenizer_puts_in_front(tokenizer, prefixing):
    assert tokenizer.prefix == ()
    assert prefixing.prefix == (256,)
    assert prefixing.encode("a") == tokenizer.encode("a")


def test_texts_are_whole_whatever_the_file_says_of_cutting_and_filling(tokenizer):
    tokenizer.backend.enable_truncation(4)
    tokenizer.backend.enable_padding(length=9)
    tokenizer.backend.save(str(tokenizer.folder / "tokenizer.json"))
    again = Tokenizer.load(tokenizer.folder)
    assert again.prefix == tokenizer.prefix
    assert len(again.encode("plain words")) == 11


def test_no_tokenizer_is_a_clear_error(tmp_path):
    with pytest.raises(EvaluationError) as caught:
        Tokenizer.load(tmp_path)
    assert str(caught.value) == (
        "no tokenizer.json\n"
        f"  where: {tmp_path}\n"
        "  why:   text is turned into tokens with the model's own tokenizer, in the tokenizers library's format\n"
        "  do:    save it next to the model: AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
    )
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(EvaluationError, match=r"tokenizer\.json cannot be read\n  where: "):
        Tokenizer.load(tmp_path)


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.filterwarnings("ignore")  # importing transformers
@pytest.mark.parametrize("place", ["file", "config", "named"])
def test_chat_uses_the_models_own_template(tokenizer, place):
    folder = tokenizer.folder
    config = {"bos_token": {"content": "<bos>"}}
    if place == "file":
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    else:
        named = [{"name": "tools", "template": "no"}, {"name": "default", "template": TEMPLATE}]
        config["chat_template"] = TEMPLATE if place == "config" else named
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.chat(messages) == tokenizer.encode("<bos>[user]hi[assistant]")
    assert tokenizer.chat(messages, reply=False) == tokenizer.encode("<bos>[user]hi")


def test_no_chat_template_is_a_clear_error(tokenizer):
    with pytest.raises(EvaluationError, match="this model has no chat template"):
        tokenizer.chat([{"role": "user", "content": "hi"}])
