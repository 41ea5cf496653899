"""Headers of safetensors files: what is whole is read as the library does, all else is refused."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import deserialize, safe_open
from safetensors.torch import save

from cambrian import weight_files
from cambrian.errors import BrokenFile
from cambrian.weight_files import (
    DTYPES,
    TensorInfo,
    encode_header,
    header,
    header_size,
    parse_header,
)

TENSORS = {
    f"{name}.{code}": torch.zeros(shape).to(getattr(torch, name))
    for code, (name, _) in DTYPES.items()
    for shape in [(3, 2) if len(code) == 3 else ()]
} | {"empty": torch.zeros(0, 4), "é 模": torch.ones(2)}
WHOLE = save(TENSORS, metadata={"format": "pt"})


def framed(text: str | bytes, data: bytes = b"") -> bytes:
    """A file of this header and these numbers."""
    raw = text.encode() if isinstance(text, str) else text
    return len(raw).to_bytes(8, "little") + raw + data


def entry(**changes: Any) -> str:
    fields = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
    return json.dumps({"a": fields})


def refused(content: bytes, folder: Path) -> str:
    """The one sentence that a file with this content is refused with."""
    file = folder / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(BrokenFile) as caught:
        header(file)
    message = str(caught.value)
    assert message.startswith(f"{file} is not a readable safetensors file: ")
    assert "\n" not in message and len(message) < 400
    return message


def test_headers_are_those_that_the_library_reads(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(WHOLE)
    found = header(file)
    assert found.metadata == {"format": "pt"}
    with safe_open(file, "pt") as held:
        assert set(held.keys()) == found.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        info = found.tensors[name]
        assert info.shape == tuple(tensor.shape)
        assert getattr(torch, DTYPES[info.dtype][0]) == tensor.dtype
        begin, end = (found.size + offset for offset in info.offsets)
        assert WHOLE[begin:end] == tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def test_the_first_bytes_are_enough() -> None:
    needed = header_size(WHOLE[:64], len(WHOLE), "there")
    assert parse_header(WHOLE[:needed], len(WHOLE), "there").tensors.keys() == TENSORS.keys()
    with pytest.raises(BrokenFile, match=r"there is not .*: 5 bytes at its end belong to no"):
        parse_header(WHOLE[:needed], len(WHOLE) + 5, "there")


def test_what_we_encode_the_library_reads(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    infos = {"a": TensorInfo("F32", (2, 1), (0, 8)), "ü": TensorInfo("BOOL", (), (8, 9))}
    file.write_bytes(encode_header(infos, {"k": "v"}) + b"\0\0\x80\x3f" * 2 + b"\1")
    assert (header(file).tensors, header(file).metadata) == (infos, {"k": "v"})
    with safe_open(file, "pt") as held:
        assert held.metadata() == {"k": "v"}
        assert held.get_tensor("a").tolist() == [[1.0], [1.0]] and bool(held.get_tensor("ü"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><p>Not found</p>", "a web page"),
        (b"<html>" + b" " * 99, "a web page"),
        (b"PK\x03\x04" + bytes(99), r"torch\.save writes; such weights end in \.bin"),
        (b"\x80\x02\x8a\x0al\xfc\x9c\x46\xf9" + bytes(99), "before 2020"),
        (b"\x1f\x8b" + bytes(99), "gzip"),
        (b"{}", "it has 2 bytes"),
        (b"Entry not found at all here", r"header would have [\d,]+ bytes, more than 8,388,608"),
        (framed("{" + " " * (9 << 20) + "}"), "header would have 9,437,186 bytes"),
        (WHOLE[:-7], "7 bytes are missing at its end"),
        (WHOLE[:100], r"[\d,]+ bytes of its header are missing"),
        (WHOLE + b"x", "1 bytes at its end belong to no tensor"),
    ],
)
def test_wrong_files_are_told_apart(content: bytes, reason: str, tmp_path: Path) -> None:
    assert re.search(reason, refused(content, tmp_path))


EMPTY = '"t{}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0],"dtype":"F32"}}', "'dtype' twice"),
        (f"{{{entry()[1:-1]},{entry()[1:-1]}}}", "'a' twice"),
        (f'{{"__metadata__":{{}},"__metadata__":{{}},{entry()[1:]}', "'__metadata__' twice"),
        ('{"__metadata__":{"a":"1","a":"2"}}', "'a' twice"),
        ('{"__metadata__":{"a":1}}', "metadata must be strings"),
        ('{"__metadata__":[]}', "metadata must be strings"),
        ("[]", "no JSON object"),
        (' {"a":1}', "no JSON object"),
        ('{"a":', "no valid JSON"),
        (b'{"\xff":1}', "no valid JSON"),
        ('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", "no valid JSON"),
        ('{"a":' + "1" * 10_000 + "}", "no valid JSON"),
        ('{"a":5}', "must have dtype, shape and data_offsets, and nothing else"),
        (entry(more=1), "and nothing else"),
        (entry(dtype="Q4"), "the dtype 'Q4'; these are known: BOOL, U8"),
        (entry(dtype=[]), "has the dtype 'list'"),
        (entry(shape=[-1, -2]), "no list of up to 64 whole numbers"),
        (entry(shape=[2.0]), "no list of up to 64 whole numbers"),
        (entry(shape=[True, 2]), "no list of up to 64 whole numbers"),
        (entry(shape=[1] * 65), "no list of up to 64 whole numbers"),
        (entry(shape=[1 << 62, 4, 0], data_offsets=[0, 0]), "too large for any machine"),
        (entry(shape=[3]), "other bytes than its shape makes"),
        (entry(data_offsets=[8, 0]), "other bytes than its shape makes"),
        (entry(data_offsets=[0]), "not two whole numbers"),
        (entry(data_offsets=[-8, 0]), "not two whole numbers"),
        (entry(data_offsets=[8, 16]), "overlap, or leave a gap, at byte 0"),
        (entry(data_offsets=[0, 8])[:-1] + "," + entry()[1:].replace("a", "b"), "dtype|overlap"),
        ('{"a\\nb":{}}', "is no line"),
        ("{" + ",".join(EMPTY.format(i) for i in range(100_001)) + "}", "100,001 tensors, more"),
    ],
)
def test_headers_that_are_not_of_the_format(text: str | bytes, reason: str, tmp_path: Path) -> None:
    message = refused(framed(text, bytes(8)), tmp_path)
    assert any(part in message for part in reason.split("|"))


def test_a_million_empty_tensors_are_refused_before_they_are_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = framed("{" + ",".join(EMPTY.format(i) for i in range(1_000_000)) + "}")
    monkeypatch.setattr(weight_files, "json", None)  # it must not come so far
    assert "header would have" in refused(content, tmp_path)


def test_damage_anywhere_is_noticed_or_harmless() -> None:
    """Whatever we let pass, the library reads too; nothing but BrokenFile comes out."""
    chance, passed = random.Random(0), 0
    whole = save({"one": torch.ones(3), "two": torch.zeros(2, 2)}, metadata={"format": "pt"})
    for _ in range(2000):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        content = bytes(content[: chance.choice([None, chance.randrange(len(content))])])
        try:
            header_size(content[:64], len(content), "here")
            found = parse_header(content, len(content), "here").tensors
        except BrokenFile:
            continue
        passed += 1
        held = {name: tuple(tensor["shape"]) for name, tensor in deserialize(content)}
        assert held == {name: info.shape for name, info in found.items()}
    assert 0 < passed < 1000
