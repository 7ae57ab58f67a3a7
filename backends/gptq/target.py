"""What a GPTQ checkpoint can say of a weight, as data.

Source: GPTQModel 7.7 (nn_modules/qlinear): SUPPORTS_BITS and SUPPORTS_GROUP_SIZE of its portable kernels.
"""

from __future__ import annotations

from drawplate.encoding import Encoding
from drawplate.target import Choice, Target

BITS = (2, 3, 4, 8)
GROUPS = (16, 32, 64, 128, 256, 512, 1024, -1)
LINEAR = tuple(
    Choice(Encoding(bits, (1, group), symmetric, scale="f16"))
    for bits in BITS
    for symmetric in (True, False)
    for group in GROUPS
)
TARGET = Target(
    name="gptq",
    menu={"linear": (*LINEAR, Choice(None)), "embedding": (Choice(None),)},
    float_dtypes=("f32", "f16", "bf16"),
    tied_bits=(),
)
