"""Encodings in words and in bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawplate import encoding
from drawplate.errors import DrawplateError
from drawplate.scheme import SCALE_DTYPES, Encoding, per_head, per_token

lengths = st.integers(1, 512) | st.just(-1)
encodings = st.builds(
    Encoding,
    st.integers(1, 16),
    st.lists(lengths, min_size=1, max_size=4).map(tuple),
    st.booleans(),
    st.booleans(),
    st.sampled_from(sorted(SCALE_DTYPES)),
    st.booleans(),
    ragged=st.booleans(),
)


@given(encodings)
def test_text_is_read_back(one: Encoding) -> None:
    assert Encoding.parse(str(one)) == one
    assert Encoding.parse(str(per_token())) == per_token()
    assert Encoding.parse(str(per_head(4))) == per_head(4) != per_token(4)


def test_the_quantiser_s_file_has_the_same_names() -> None:
    """Where an encoding is used, its tensors usually are too; so both come from one import."""
    assert encoding.Encoding is Encoding
    assert all(hasattr(encoding, name) for name in encoding.__all__)


def test_a_group_that_does_not_divide_says_which_would() -> None:
    with pytest.raises(DrawplateError) as error:
        Encoding(4, (1, 64)).blocks([4, 96])
    assert str(error.value) == (
        "a group size of 64 does not divide axis 1 of length 96\n"
        "  where: tensor of shape [4, 96], encoding 'i4 block 1x64 sym scale f32'\n"
        "  do:    use a group of 16, 32, or -1 for the whole axis"
    )


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Encoding(0, (1, -1)), "an encoding of 0 bits\n  why:   integers have 1 to 16 bits here"),
        (lambda: Encoding(4, (1, 0)), "block (1, 0)\n  why:   each entry is a positive length or -1"),
        (lambda: Encoding(4, (-1,), scale="f8"), "scale dtype 'f8'\n  why:   one of f32, f16, bf16"),  # type: ignore[arg-type]
        (
            lambda: Encoding(8, (-1,), rule="fbgemm"),
            "the rule 'fbgemm'\n  why:   it is for dynamic asymmetric encodings",
        ),
        (lambda: Encoding.parse("int4"), "not an encoding: 'int4'\n  do:    write for example"),
        (lambda: Encoding(4, (1, -1)).blocks([8]), "a block of 2 axes for a tensor of 1\n  where: tensor"),
    ],
)
def test_what_is_no_encoding_is_refused(make: object, what: str) -> None:
    with pytest.raises(DrawplateError) as error:
        make()  # type: ignore[operator]
    assert str(error.value).startswith(what)


def test_bytes_are_codes_scales_and_zero_points() -> None:
    assert Encoding(4, (1, 32), scale="bf16").nbytes([64, 96]) == 64 * 48 + 64 * 3 * 2
    assert Encoding(3, (1, -1)).nbytes([4, 5]) == 4 * 2 + 4 * 4
    assert Encoding(4, (1, 32), symmetric=False).nbytes([64, 96]) == 64 * 48 + 64 * 3 * 4 + 64 * 3 // 2
    assert Encoding(4, (1, 64), ragged=True).nbytes([64, 96]) == 64 * 48 + 64 * 2 * 4
