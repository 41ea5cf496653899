"""The machine that reads pickles: what is no description of tensors is refused, and soon."""

from __future__ import annotations

import time

import pytest

from cambrian.torch_pickle import Refused, Storage, TensorView, read_pickle
from torch_streams import rebuilt

MINUS = b"J\xff\xff\xff\xff"
SIX = {"shape": b"K\x06\x85", "strides": b"K\x01\x85"}


def test_a_tensor_is_noted_down_and_not_made() -> None:
    found = read_pickle(b"before\x80\x02}U\x01a" + rebuilt() + b"s.after", position=6)
    storage = Storage("0", "F32", 6)
    assert found.value == {"a": TensorView(storage, 0, (2, 3), (3, 1))}
    assert found.storages == {"0": storage}
    assert found.end == len(b"before\x80\x02}U\x01a" + rebuilt() + b"s.")


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (rebuilt(numbers=MINUS), "a storage without key or size"),
        (rebuilt(offset=b"U\x01x"), "a tensor without a place"),
        (rebuilt(offset=MINUS), "a tensor without a place"),
        (rebuilt(**SIX | {"strides": MINUS + b"\x85"}), "shape or strides"),
        (rebuilt(**SIX | {"shape": b"K\x06"}), "shape or strides"),
        (rebuilt(**SIX | {"shape": b"U\x016\x85"}), "shape or strides"),
        (b"X\xff\xff\xff\xff", "ends too early"),
        (b"\x8b\xff\xff\xff\x7f", "the instruction LONG4, which"),  # a number of 2 GB
        (b"\x96" + b"\x7f" * 8, "the instruction BYTEARRAY8, which"),
        (b"(ios\nsystem\n", "the instruction INST, which"),
        (b"cos\nsystem\n", "it calls os.system"),
        (b"\x8c\x02os\x8c\x06system\x93", "it calls os.system"),
        (b"\x82\x01", "the instruction EXT1, which"),
        (b"\xfe", "the instruction 0xfe, which"),
        (b"h\x63", "its pickle is damaged"),
        (b")R", "its pickle is damaged"),
        (b"K\x01Q", "no storage of tensors"),
        (b"K\x01K\x01K\x01s", "no dictionary"),
        (b"}K\x01a", "no list"),
        (b"}}b", "it changes what has no attributes"),
        (rebuilt() + b"0", "the instruction POP, which"),
        (b"]" + rebuilt() + b"a" + rebuilt(numbers=b"K\x07") + b"a", "two types or sizes"),
    ],
)
def test_tampered_pickles(tensor: bytes, reason: str) -> None:
    with pytest.raises(Refused) as caught:
        read_pickle(b"\x80\x02}U\x01a" + tensor + b"s.")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "program",
    [
        b"(" * 6_000_000,  # nothing but marks
        b"}" + b"\x85" * 3_000_000 + b"K\1a.",  # a tuple as deep, let go of at the end
        b"}q\0" + b"h\0h\0\x86q\0" * 1000 + b"U\x01as.",  # 2 ** 1000 elements, all one
        b"](" + b"K\1" * 900_000 + b"eq\0\x85q\1ctorch\nSize\nq\2" + b"h\2h\1R" * 200_000 + b".",
        b"](" + b")" * 900_000 + b"tq\1ctorch\nSize\nq\2" + b"h\2h\1R" * 200_000 + b".",
        b"](" + b"(K\1K\1t" * 400_000 + b"eq\0\x85q\1ccollections\nOrderedDict\nq\2"
        + b"h\2h\1R" * 200_000 + b".",
    ],
)  # fmt: skip
def test_bombs_end_soon(program: bytes) -> None:
    begin = time.perf_counter()
    with pytest.raises(Refused):
        read_pickle(program)
    assert time.perf_counter() - begin < 20  # seconds; 2 on an idle machine
