"""Recipes: three forms of the same content, and errors that point at the word."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from flowkit import AddNoise, Plain, RoundWeights, ScaleWeights, kit_session
from hypothesis import given, settings
from hypothesis import strategies as st

from drawplate.backendbase import Backend
from drawplate.errors import DrawplateError, RecipeError
from drawplate.options import options_of, spec
from drawplate.passbase import Env, Pass
from drawplate.program import Program
from drawplate.recipe import Recipe

SESSION = kit_session()

names = st.text(st.characters(exclude_categories=["Cs", "Cc"]))
passes = st.one_of(
    st.builds(ScaleWeights, by=st.floats(allow_nan=False)),
    st.builds(
        RoundWeights,
        bits=st.integers(),
        block=st.lists(st.integers(-1, 512), max_size=3).map(tuple),
        kind=st.sampled_from(["sym", "asym"]),
        skip=st.lists(names, max_size=3).map(tuple),
    ),
    st.builds(AddNoise, note=st.none() | names, folder=st.none() | names.filter(lambda n: "\0" not in n).map(Path)),
)
recipes = st.builds(
    Recipe.of,
    st.lists(passes, max_size=4),
    st.none() | st.builds(Plain, context=st.integers(), refuses=st.booleans()),
    seed=st.integers(0),
    pinned=st.booleans(),
)


@settings(deadline=None)
@given(recipes)
def test_parsing_what_was_printed_gives_the_recipe(recipe: Recipe) -> None:
    again = Recipe.parse(str(recipe), SESSION)
    assert again == recipe
    assert str(again) == str(recipe)


@settings(deadline=None)
@given(recipes)
def test_toml_says_the_same(recipe: Recipe) -> None:
    again = Recipe.from_toml(recipe.to_toml(), SESSION)
    assert again == recipe
    assert again.to_toml() == recipe.to_toml()


def test_text_leaves_defaults_out() -> None:
    recipe = Recipe.parse(
        " scale-weights{by=1.0}, round-weights{ bits=4, block = 1x64 }->plain{context=128} with{seed=0,pinned=true} ",
        SESSION,
    )
    assert recipe.passes == (ScaleWeights(), RoundWeights(block=(1, 64)))
    assert str(recipe) == "scale-weights,round-weights{block=1x64} -> plain with{pinned=true}"


def test_the_preset_as_text_and_back() -> None:
    recipe = Recipe.load("small", SESSION)
    assert (recipe.name, recipe.description) == ("small", "scaled and rounded")
    assert str(recipe) == "scale-weights,round-weights{block=1x64} -> plain"
    assert Recipe.from_toml(recipe.to_toml(), SESSION).description == "scaled and rounded"


def test_a_preset_stands_for_its_passes() -> None:
    recipe = Recipe.load("small,add-noise -> plain{context=9}", SESSION)
    assert str(recipe) == "scale-weights,round-weights{block=1x64},add-noise -> plain{context=9}"
    assert recipe.name == ""
    assert Recipe.load("small", SESSION).retarget("plain{context=9}", SESSION).options == {"context": 9}


def test_a_file_is_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('passes = ["scale-weights"]\nbackend = "plain"\nseed = 3\n')
    for source in (path, str(path)):
        recipe = Recipe.load(source, SESSION)
        assert str(recipe) == "scale-weights -> plain with{seed=3}"
        assert recipe.name == "mine"


def test_values_of_every_kind() -> None:
    text = 'add-noise{note="a, \\"b\\" }",strength=1e-05,folder=/x/y},round-weights{skip=[a.b, "c d"]}'
    noise, rounded = Recipe.parse(text, SESSION).passes
    assert noise == AddNoise(note='a, "b" }', strength=1e-5, folder=Path("/x/y"))
    assert rounded == RoundWeights(skip=("a.b", "c d"))
    assert spec(AddNoise(note="none")) == 'add-noise{note="none"}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "scale-weights,rond-weights{bits=4}",
            (
                "no pass is called 'rond-weights'\n"
                "  where: column 15\n"
                "    scale-weights,rond-weights{bits=4}\n"
                "                  ^\n"
                "  do:    did you mean 'round-weights'?"
            ),
        ),
        (
            "round-weights{bit=4}",
            (
                "no option of round-weights is called 'bit'\n"
                "  where: column 15\n"
                "    round-weights{bit=4}\n"
                "                  ^\n"
                "  do:    did you mean 'bits'?"
            ),
        ),
        (
            "round-weights{kind=asim}",
            (
                "option 'kind' cannot be 'asim'\n"
                "  where: column 15\n"
                "    round-weights{kind=asim}\n"
                "                  ^\n"
                "  why:   it is one of sym, asym\n"
                "  do:    did you mean 'asym'?"
            ),
        ),
        (
            "scale-weights -> plane",
            (
                "no backend is called 'plane'\n"
                "  where: column 18\n"
                "    scale-weights -> plane\n"
                "                     ^\n"
                "  do:    did you mean 'plain'?"
            ),
        ),
        (
            "scale-weights with{sed=1}",
            (
                "no setting is called 'sed'\n"
                "  where: column 20\n"
                "    scale-weights with{sed=1}\n"
                "                       ^\n"
                "  do:    did you mean 'seed'?"
            ),
        ),
        (
            "smal",
            (
                "no recipe and no pass is called 'smal'\n"
                "  where: column 1\n"
                "    smal\n"
                "    ^\n"
                "  do:    did you mean recipe 'small'?"
            ),
        ),
        (
            "smast,add-noise",
            (
                "no recipe and no pass is called 'smast'\n"
                "  where: column 1\n"
                "    smast,add-noise\n"
                "    ^\n"
                "  do:    did you mean recipe 'small' or pass 'cast'?"
            ),
        ),
    ],
)
def test_errors_point_at_the_word(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text, SESSION)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "what", "why", "column"),
    [
        ("a,,b", "the recipe could not be read", "expected the name of a pass", 3),
        ("scale-weights{by", "the recipe could not be read", "expected '=' behind 'by'", 17),
        ("scale-weights{by=", "the recipe could not be read", "expected a value", 18),
        ("scale-weights{by=1", "the recipe could not be read", "expected ',' or '}'", 19),
        ("scale-weights round-weights", "the recipe could not be read", "expected ',' or '->'", 15),
        ("->", "the recipe could not be read", "expected the name of a backend", 3),
        ("-> plain plain", "the recipe could not be read", "expected 'with{..}'", 10),
        ("scale-weights{by=1,by=2}", "option 'by' is given twice", "", 20),
        ("round-weights{bits=4.5}", "option 'bits' cannot be '4.5'", "it is a whole number", 15),
        (
            "round-weights{block=1-32}",
            "option 'block' cannot be '1-32'",
            "it is whole numbers joined by x, such as 1x32",
            15,
        ),
        (
            "scale-weights{by=nan}",
            "option 'by' cannot be 'nan'",
            "it is a number: a recipe with nan in it would not equal itself",
            15,
        ),
        (
            "add-noise{note=a b}",
            "option 'note' cannot be 'a b'",
            'it is text, or none: put it in quotes, "like this"',
            11,
        ),
        ("-> plain{refuses=1}", "option 'refuses' cannot be '1'", "it is true or false", 10),
        (
            "add-noise,small",
            "recipe 'small' stands behind something else",
            "a preset's name stands first, for its passes",
            11,
        ),
        ("small{x=1}", "recipe 'small' takes no options here", "a preset's name stands for its passes as they are", 1),
    ],
)
def test_more_errors(text: str, what: str, why: str, column: int) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text, SESSION)
    assert (caught.value.what, caught.value.why) == (what, why)
    assert caught.value.where.startswith(f"column {column}\n")


@pytest.mark.parametrize(
    ("toml", "what", "where", "fix"),
    [
        ("pases = []", "no key of a recipe is called 'pases'", "recipe", "did you mean 'passes'?"),
        ("passes = 3", "'passes' is not a list", "recipe", 'write [[passes]] and under it name = ".."'),
        (
            'passes = ["scale-weight"]',
            "no pass is called 'scale-weight'",
            "recipe: passes[0]",
            "did you mean 'scale-weights'?",
        ),
        ("[[passes]]\nby = 1", "a pass without a name", "recipe: passes[0]", None),
        (
            '[[passes]]\nname = "scale-weights"\nbye = 1',
            "no option of scale-weights is called 'bye'",
            "recipe: passes[0] (scale-weights)",
            "did you mean 'by'?",
        ),
        (
            '[[passes]]\nname = "round-weights"\nblock = [1.5]',
            "option 'block' cannot be (1.5,)",
            "recipe: passes[0] (round-weights)",
            "",
        ),
        ('[backend]\nname = "plain"\ncontext = true', "option 'context' cannot be True", "recipe: backend (plain)", ""),
        ("passes = [", "the recipe is not TOML", "recipe", ""),
    ],
)
def test_toml_errors_name_the_entry(toml: str, what: str, where: str, fix: str | None) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_toml(toml, SESSION)
    assert (caught.value.what, caught.value.where) == (what, where)
    assert fix is None or caught.value.fix == fix


def test_a_first_name_that_is_like_nothing_is_told_all_names() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse("q", Ranked())
    assert caught.value.what == "no recipe and no pass is called 'q'"
    assert caught.value.fix == "there are: recipe none; pass needs-rank"


def test_a_missing_file_and_a_missing_backend() -> None:
    with pytest.raises(RecipeError, match=r"where: nowhere.toml"):
        Recipe.load("nowhere.toml", SESSION)
    with pytest.raises(RecipeError, match="the recipe names no backend"):
        Recipe.parse("scale-weights", SESSION).make_backend(SESSION)


@dataclass(frozen=True)
class NeedsRank(Pass):
    """An option without a default, and one with a rule."""

    name: ClassVar[str] = "needs-rank"
    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError("a rank is positive")
        if self.rank > 99:
            raise DrawplateError("a rank of more than 99", fix="give less")

    def run(self, program: Program, env: Env) -> Program:
        return program


class Ranked:
    passes: ClassVar = {"needs-rank": NeedsRank}
    backends: ClassVar[dict[str, type[Backend]]] = {}
    recipes: ClassVar[dict[str, str]] = {}


def test_what_the_pass_itself_refuses() -> None:
    with pytest.raises(RecipeError, match="'needs-rank' must be given rank"):
        Recipe.parse("needs-rank", Ranked())
    with pytest.raises(RecipeError, match="a rank is positive"):
        Recipe.parse("needs-rank{rank=0}", Ranked())
    with pytest.raises(DrawplateError, match="a rank of more than 99"):
        Recipe.parse("needs-rank{rank=100}", Ranked())


def test_an_option_that_no_text_can_write() -> None:
    @dataclass(frozen=True)
    class Odd(NeedsRank):
        table: dict[str, int] | None = None

    with pytest.raises(RecipeError, match="has no text form"):
        options_of(Odd)
