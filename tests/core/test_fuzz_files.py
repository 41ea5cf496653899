"""Files from elsewhere, mutated: whatever is in them, an error is one sentence and comes soon.

CAMBRIAN_FUZZ=20000 runs that many mutations of each kind instead of a few.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cambrian import load_registry
from cambrian.checkpoint import read_config, read_index, recognise
from cambrian.errors import CambrianError
from cambrian.files import read_json
from cambrian.hub import Lock, Pin
from cambrian.hub.lock import PinnedFile
from cambrian.registry import shipped_file
from cambrian.registry_file import read_registry_file

ROUNDS = int(os.environ.get("CAMBRIAN_FUZZ", "300"))
SECONDS = 2.0  # the longest that one file may take
# What is put in: numbers that are no sizes, other types, what escapes, what nests.
PIECES = (
    b"null", b"-1", b"1e999", b"99999999999999999999", b'"../../x"', b"[[[[[[[[", b'{"a":', b"\x00",
    b"\xff\xfe", b"true", b'""', b"\n", b"=", b"'''", b"[models.a]\n", b'"\\ud800"',
    b"NaN", b"[" * 3000,
)  # fmt: skip


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, cut, doubled, or replaced by a piece."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(out) + 1)
        end = min(len(out), at + chance.choice((0, 1, 2, 8, 40)))
        how = chance.randrange(4)
        if how == 0:
            out[at:end] = bytes(chance.randrange(256) for _ in range(end - at))
        elif how == 1:
            out[at:end] = chance.choice(PIECES)
        elif how == 2:
            out[at:at] = out[at:end]
        else:
            del out[at:end]
    return bytes(out)


def read_registry(file: Path) -> None:
    read_registry_file(file, "test")


def read_model_config(file: Path) -> None:
    description, specs = read_json(file), load_registry().models.values()
    read_config(description, recognise(description, specs, file), file)


REGISTRY = shipped_file().read_bytes()[:3000]
LOCK = Lock({"a": Pin("b/c", "1" * 40, {"config.json": PinnedFile(3, "a" * 64)}, "mit")}).text()
BERT = {
    "architectures": ["BertForMaskedLM"],
    "model_type": "bert",
    "hidden_size": 32,
    "num_attention_heads": 2,
    "hidden_act": "gelu",
    "vocab_size": 100,
}
INDEX = {
    "metadata": {"total_size": 8},
    "weight_map": {"a.weight": "model-00001-of-00001.safetensors"},
}
KINDS: dict[str, tuple[bytes, Callable[[Path], object]]] = {
    "registry.toml": (REGISTRY, read_registry),
    "cambrian.lock": (LOCK.encode(), Lock.read),
    "config.json": (json.dumps(BERT).encode(), read_model_config),
    "model.safetensors.index.json": (json.dumps(INDEX).encode(), read_index),
}


@pytest.mark.parametrize("name", KINDS)
def test_no_file_makes_more_than_a_sentence(name: str, tmp_path: Path) -> None:
    (data, read), file = KINDS[name], tmp_path / name
    chance, refused = random.Random(name), 0
    for number in range(ROUNDS):
        file.write_bytes(mutated(data, chance))
        begin = time.process_time()
        try:
            read(file)
        except CambrianError as error:
            refused += 1
            assert str(error)
        except Exception as error:
            raise AssertionError(f"{name}, case {number}: {file.read_bytes()!r}") from error
        assert time.process_time() - begin < SECONDS, file.read_bytes()
    assert refused > ROUNDS // 10  # or the mutations do not reach what is checked
