"""Typed options: the fields of a pass or backend dataclass, to text and back.

Writing goes by the value, reading by the field's annotation: `bits=4`, `shrink=0.8`, `bias=true`,
`kind=hadamard`, `block=1x32` (tuple of ints), `skip=[lm_head, up]` (tuple of strings), `group=none` (an
optional one), and quotes around a string that is not plain. In TOML the native types say the same, and an
empty table stands for none.
"""

from __future__ import annotations

import difflib
import inspect
import json
import math
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from drawplate.errors import RecipeError

_PLAIN = re.compile(r"[A-Za-z0-9_./:~+-]+")
_WORDS = ("none", "true", "false")  # plain text that stands for something else than itself


@dataclass(frozen=True)
class Kind:
    """The type of one option. name: as messages call it. read: text -> value, ValueError if it is none.

    accepts: is this Python value (from TOML) one of the kind? words: all of its values, where they are few.
    """

    name: str
    read: Callable[[str], Any]
    accepts: Callable[[Any], bool]
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Option:
    """One field of a pass or backend. default is MISSING where the option must be written."""

    name: str
    kind: Kind
    default: Any


def options_of(owner: type[Any]) -> dict[str, Option]:
    """The options of a pass or backend class, in the order of its fields."""
    found = {}
    for field in fields(owner):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        kind = _kind(_annotation(owner, field.name), f"{owner.__name__}.{field.name}")
        found[field.name] = Option(field.name, kind, default)
    return found


def said(thing: Any) -> dict[str, Any]:
    """The options of a pass or backend that differ from their defaults: the others go without saying."""
    values = {o.name: (getattr(thing, o.name), o.default) for o in options_of(type(thing)).values()}
    # By type too: 1 == True in Python, but not to a reader.
    return {k: v for k, (v, default) in values.items() if type(v) is not type(default) or v != default}


def spec(thing: Any) -> str:
    """A pass or backend as a recipe writes it: `rotate{kind=hadamard}`."""
    return element(thing.name, said(thing))


def element(name: str, options: Mapping[str, Any]) -> str:
    """`name{key=value,..}`, or the bare name if there is nothing to say."""
    inner = ",".join(f"{k}={write(v)}" for k, v in options.items())
    return f"{name}{{{inner}}}" if inner else name


def write(value: Any) -> str:
    """An option's value in the recipe's text."""
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str() | Path():
            return _quoted(str(value))
        case tuple() if value and all(isinstance(v, int) for v in value):
            return "x".join(map(str, value))
        case tuple() if all(isinstance(v, str) for v in value):
            return "[" + ", ".join(map(_quoted, value)) + "]"
    raise RecipeError(f"an option's value has no text form: {value!r}", fix=_KINDS_THERE_ARE)


def read(text: str, option: Option, where: str) -> Any:
    """The value of an option from its text. Raises RecipeError."""
    try:
        return option.kind.read(text)
    except ValueError as error:
        raise RecipeError(
            f"option {option.name!r} cannot be {text!r}",
            where=where,
            why=f"it is {option.kind.name}" + (f": {error}" if str(error) else ""),
            fix=nearest(text, option.kind.words),
        ) from None


def read_toml(value: Any, option: Option, where: str) -> Any:
    """The value of an option from TOML: native types as they are, strings also in the text's spelling."""
    value = tuple(value) if isinstance(value, list) else None if value == {} else value
    if option.kind.accepts(value):
        return option.kind.read(write(value))  # 1 where a number is due becomes 1.0, a string a path
    if isinstance(value, str):
        return read(value, option, where)
    what = f"option {option.name!r} cannot be {value!r}"
    raise RecipeError(what, where=where, why=f"it is {option.kind.name}")


def write_toml(value: Any) -> Any:
    """The value in TOML's types, which know no null."""
    match value:
        case None:
            return {}
        case tuple():
            return list(value)
        case Path():
            return str(value)
    return value


def build(owner: type[Any], values: Mapping[str, Any], where: str) -> Any:
    """The pass or backend with these options. What its own __post_init__ refuses is a RecipeError too."""
    missing = [o.name for o in options_of(owner).values() if o.default is MISSING and o.name not in values]
    if missing:
        raise RecipeError(
            f"{owner.name!r} must be given {', '.join(missing)}",
            where=where,
            why="there is no default",
            fix=f"write {owner.name}{{{','.join(f'{name}=..' for name in missing)}}}",
        )
    try:
        return owner(**values)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{owner.name!r} refuses its options", where=where, why=str(error)) from error


def unknown(name: str, known: Mapping[str, Iterable[str]], where: str) -> RecipeError:
    """'no recipe and no pass is called ..', with the nearest name of each kind or, failing that, all of them.

    known: what the name might have been, by kind ("pass").
    """
    near, there_are = [], []
    for kind, names in known.items():
        label = f"{kind} " if len(known) > 1 else ""
        near += [f"{label}{match!r}" for match in difflib.get_close_matches(name, sorted(names), n=1)]
        there_are.append(f"{label}{', '.join(sorted(names)) or 'none'}")
    what = " and ".join(f"no {kind}" for kind in known)
    fix = f"did you mean {' or '.join(near)}?" if near else f"there are: {'; '.join(there_are)}"
    return RecipeError(f"{what} is called {name!r}", where=where, fix=fix)


def nearest(name: str, known: Iterable[str]) -> str:
    """'did you mean ..?' or nothing."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def split_items(text: str, separator: str = ",") -> list[str]:
    """Split at the separators that are outside quotes and brackets.

    >>> split_items('a, "b, c", [d, e]')
    ['a', ' "b, c"', ' [d, e]']
    """
    items, depth, start, quoted, escaped = [], 0, 0, False, False
    for i, c in enumerate(text):
        if quoted:
            quoted, escaped = c != '"' or escaped, c == "\\" and not escaped
        elif c == '"':
            quoted = True
        elif c == separator and depth == 0:
            items.append(text[start:i])
            start = i + 1
        else:
            depth += (c in "[{") - (c in "]}")
    return [*items, text[start:]]


def _quoted(text: str) -> str:
    """Bare where it is plain, else in JSON's quotes."""
    return text if _PLAIN.fullmatch(text) and text not in _WORDS else json.dumps(text, ensure_ascii=False)


def _unquoted(text: str) -> str:
    if text.startswith('"'):
        value = json.loads(text)
        assert isinstance(value, str)
        return value
    if not _PLAIN.fullmatch(text):
        raise ValueError('put it in quotes, "like this"')
    return text


def _annotation(owner: type[Any], name: str) -> Any:
    """The type of one field. Resolved alone: others may name what is imported for type checkers only."""
    home = next(c for c in owner.__mro__ if name in inspect.get_annotations(c))
    alone = types.SimpleNamespace(__annotations__={name: inspect.get_annotations(home)[name]})
    return get_type_hints(alone, globalns=vars(sys.modules[home.__module__]))[name]


def _kind(hint: Any, where: str) -> Kind:
    """The kind that belongs to an annotation. A pass's author who uses another is told which there are."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType) and len(args) == 2 and type(None) in args:
        return _optional(_kind(args[0] if args[1] is type(None) else args[1], where))
    if origin is Literal and all(isinstance(a, str) for a in args):
        return _choice(args)
    if hint in _KINDS:
        return _KINDS[hint]
    raise RecipeError(
        f"an option of type {hint} has no text form",
        where=where,
        why="a recipe must be able to write every option",
        fix=_KINDS_THERE_ARE,
    )


def _choice(words: tuple[str, ...]) -> Kind:
    def read(text: str) -> str:
        if _unquoted(text) not in words:
            raise ValueError
        return _unquoted(text)

    return Kind(f"one of {', '.join(words)}", read, lambda v: isinstance(v, str) and v in words, words)


def _optional(kind: Kind) -> Kind:
    return Kind(
        f"{kind.name}, or none",
        lambda text: None if text == "none" else kind.read(text),
        lambda value: value is None or kind.accepts(value),
        (*kind.words, "none"),
    )


def _read_bool(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


def _read_int(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d+", text):
        raise ValueError
    return int(text)


def _read_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError from None  # Python's message is about its own function
    if math.isnan(value):
        raise ValueError("a recipe with nan in it would not equal itself")
    return value


def _read_ints(text: str) -> tuple[int, ...]:
    if text == "[]":
        return ()
    if not re.fullmatch(r"-?\d+(x-?\d+)*", text):
        raise ValueError
    return tuple(map(int, text.split("x")))


def _read_strings(text: str) -> tuple[str, ...]:
    if not (text.startswith("[") and text.endswith("]")):
        return (_unquoted(text),)
    inner = text[1:-1].strip()
    return tuple(_unquoted(item.strip()) for item in split_items(inner)) if inner else ()


def _is(*kinds: type) -> Callable[[Any], bool]:
    """bool is an int to Python, not to a reader."""
    return lambda v: isinstance(v, kinds) and (bool in kinds or not isinstance(v, bool))


def _all_are(kind: type) -> Callable[[Any], bool]:
    return lambda values: isinstance(values, tuple) and all(map(_is(kind), values))


_KINDS: dict[Any, Kind] = {
    bool: Kind("true or false", _read_bool, _is(bool), ("true", "false")),
    int: Kind("a whole number", _read_int, _is(int)),
    float: Kind("a number", _read_float, _is(int, float)),
    str: Kind("text", _unquoted, _is(str)),
    Path: Kind("a path", lambda text: Path(_unquoted(text)), _is(str, Path)),
    tuple[int, ...]: Kind("whole numbers joined by x, such as 1x32", _read_ints, _all_are(int)),
    tuple[str, ...]: Kind("names in brackets, such as [a, b]", _read_strings, _all_are(str)),
}
_KINDS_THERE_ARE = (
    "use int, float, bool, str, Path, a Literal of strings, tuple[int, ...], tuple[str, ...], or one | None"
)


def refuse_numbers(options: object, *, positive: Iterable[str] = (), not_negative: Iterable[str] = ()) -> None:
    """Raise ValueError for the first of these options that is a number too low; None is left to the one that asks."""
    for name in (*positive, *not_negative):
        value = getattr(options, name)
        low = name in not_negative
        if value is not None and (value < 0 if low else value <= 0):
            raise ValueError(f"{name}={value} is {'below' if low else 'not above'} 0")
