"""Conversations as questions: four ways to write them, the model's own template, and errors that name the entry."""

from __future__ import annotations

import json

import pytest

from drawplate.errors import EvaluationError
from drawplate.evaluate.conversations import are_conversations, load_conversations

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
ASKED = "[user]hi<eos>[assistant]"
ROWS = {
    "alpaca": ({"instruction": "hi", "input": "", "output": "yo"}, ["yo"]),
    "messages": ({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}, ["yo"]),
    "texts": ({"prompt": "hi", "chosen": "yo", "rejected": "no"}, ["yo", "no"]),
    "lists": (
        {
            "prompt": [{"role": "user", "content": "hi"}],
            "chosen": [{"role": "assistant", "content": "yo"}],
            "rejected": [{"role": "assistant", "content": "no"}],
        },
        ["yo", "no"],
    ),
    "sharegpt": (
        {
            "conversations": [{"from": "human", "value": "hi"}],
            "chosen": {"from": "gpt", "value": "yo"},
            "rejected": {"from": "gpt", "value": "no"},
        },
        ["yo", "no"],
    ),
}


@pytest.fixture
def chatting(tokenizer):
    (tokenizer.folder / "chat_template.jinja").write_text(TEMPLATE)
    return tokenizer


@pytest.mark.filterwarnings("ignore")  # importing transformers
@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("kind", ROWS)
def test_what_was_asked_and_the_answers(chatting, tmp_path, kind, lines):
    row, answers = ROWS[kind]
    path = tmp_path / "data.json"
    path.write_text(f"{json.dumps(row)}\n\n{json.dumps(row)}\n" if lines else json.dumps([row, row]))
    assert are_conversations(path)
    found = list(load_conversations(path, chatting, 100))
    assert found[0] == found[1]
    (question, _) = found
    expected = [(chatting.encode(ASKED), chatting.encode(f"{answer}<eos>")) for answer in answers]
    assert [(list(given), list(rest)) for given, rest in question.choices] == expected
    assert question.answer == 0


@pytest.mark.filterwarnings("ignore")
def test_an_input_stands_under_the_instruction_and_what_is_too_long_is_left_out(chatting, tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"instruction": "add", "input": "1 2", "output": "3"}, ROWS["alpaca"][0]]))
    (_, short) = load_conversations(path, chatting, 100)
    given = next(load_conversations(path, chatting, 100)).choices[0][0]
    assert list(given) == chatting.encode("[user]add\n1 2<eos>[assistant]")
    assert list(load_conversations(path, chatting, len(given))) == [short]


def test_a_choice_task_is_none(tmp_path):
    path = tmp_path / "task.jsonl"
    path.write_text('{"prompt": "2 + 2 =", "choices": [" 4", " 5"], "answer": 0}\n')
    assert not are_conversations(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"instruction": "hi"}, "'output' is missing"),
        ({"instruction": "hi", "output": ""}, "an answer that is ''"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "the last message is of the user, and not an answer"),
        (
            {"messages": [{"role": "robot", "content": "hi"}]},
            "a message of 'robot', and not of user, assistant or system",
        ),
    ],
)
def test_an_entry_that_is_wrong_is_named(chatting, tmp_path, row, why):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([ROWS["alpaca"][0], row]))
    with pytest.raises(EvaluationError) as error:
        list(load_conversations(path, chatting, 100))
    assert str(error.value) == (
        "not a conversation with an answer\n"
        f"  where: {path}, entry 2\n"
        f"  why:   {why}\n"
        '  do:    write {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}'
    )


@pytest.mark.filterwarnings("ignore")
def test_a_template_that_refuses_names_the_entry(chatting, tmp_path):
    (chatting.folder / "chat_template.jinja").write_text("{{ raise_exception('no system messages') }}")
    path = tmp_path / "data.json"
    path.write_text(json.dumps([ROWS["alpaca"][0]]))
    with pytest.raises(EvaluationError) as error:
        list(load_conversations(path, chatting, 100))
    assert str(error.value) == (
        "not a conversation for this model\n"
        f"  where: {path}, entry 1\n"
        "  why:   the chat template refuses: no system messages"
    )


@pytest.mark.filterwarnings("ignore")
def test_the_day_does_not_matter(chatting, tmp_path):
    (chatting.folder / "chat_template.jinja").write_text("{{ strftime_now('%Y') }}" + TEMPLATE)
    path = tmp_path / "data.json"
    path.write_text(json.dumps([ROWS["alpaca"][0]]))
    (question,) = load_conversations(path, chatting, 100)
    assert list(question.choices[0][0]) == chatting.encode("26 Jul 2024" + ASKED)


def test_a_line_separator_within_a_text_is_text(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"prompt": "a\u2028b", "chosen": "c", "rejected": "d"}, ensure_ascii=False))
    assert are_conversations(path)
