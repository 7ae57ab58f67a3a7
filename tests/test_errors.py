"""Errors and refusals in words."""

from __future__ import annotations

import pickle

from drawplate.errors import PassError, Refusal, grouped


def linears(count: int, why: str = "its input is not rounded", fix: str = "round it") -> list[Refusal]:
    return [Refusal(f"layers.{i}.up", "aten.linear", why, "modeling.py:40", fix) for i in range(count)]


def test_an_error_says_what_where_why_and_what_to_do() -> None:
    error = PassError("no", where="here", why="one reason\nand another", fix="do it")
    assert str(error) == "no\n  where: here\n  why:   one reason\n         and another\n  do:    do it"
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.why) == (PassError, str(error), "one reason\nand another")


def test_a_few_refusals_are_told_one_by_one() -> None:
    assert grouped(linears(2)) == [
        "layers.0.up (aten.linear): its input is not rounded [modeling.py:40]; round it",
        "layers.1.up (aten.linear): its input is not rounded [modeling.py:40]; round it",
    ]
    assert grouped([]) == []


def test_what_holds_for_many_is_told_once() -> None:
    assert grouped(linears(60)) == [
        "60 linears (first: layers.0.up, layers.1.up): its input is not rounded [modeling.py:40]; round it"
    ]


def test_only_what_is_alike_is_told_together() -> None:
    softmax = [Refusal(f"layers.{i}", "aten.softmax.int", "it stays", f"modeling.py:{i}") for i in range(4)]
    bare = [Refusal(f"w{i}", "", "it is odd") for i in range(3)]
    mixed = [*linears(1), *softmax, *linears(3, "another reason"), *bare, *linears(2, fix="leave it")]
    assert grouped(mixed) == [
        "layers.0.up (aten.linear): its input is not rounded [modeling.py:40]; round it",
        "4 softmaxes (first: layers.0, layers.1): it stays [modeling.py:0, modeling.py:1, ..]",
        "3 linears (first: layers.0.up, layers.1.up): another reason [modeling.py:40]; round it",
        "3 places (first: w0, w1): it is odd",
        "layers.0.up (aten.linear): its input is not rounded [modeling.py:40]; leave it",
        "layers.1.up (aten.linear): its input is not rounded [modeling.py:40]; leave it",
    ]
