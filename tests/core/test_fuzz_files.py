"""Files from elsewhere, mutated: whatever is in them, an error is one sentence and comes soon.

CAMBRIAN_FUZZ=20000 reads that many mutations of each kind, for whoever has an hour.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fuzzing
import fuzzing_seeds
from cambrian import load_registry
from cambrian.checkpoint import Checkpoint, read_index, require_match, save_description
from cambrian.cli import one_line_errors
from cambrian.config import parse_assignment, read_changes
from cambrian.data.tokenizer import Tokenizer
from cambrian.errors import BrokenFile, CambrianError, UsageError
from cambrian.files import read_json
from cambrian.hub import Lock, Pin
from cambrian.hub.lock import PinnedFile
from cambrian.registry_file import read_registry_file
from cambrian.testing import prepared
from fuzzing_seeds import KINDS

FEW, MANY = 200, 5000
DEAR = {"config.json": 4}  # so many times fewer of the kinds that torch is needed for
FUZZING = Path(fuzzing.__file__)


def fuzzed(kind: str, cases: int, seed: int) -> dict[str, Any]:
    """What came of so many mutations of a kind, in a process of its own."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        work, cache = Path(folder, "work"), Path(folder, "cache")
        work.mkdir()
        own = {
            "XDG_CACHE_HOME": str(cache),
            "TOKENIZERS_PARALLELISM": "false",
            "RUST_BACKTRACE": "0",
        }
        done = subprocess.run(
            [sys.executable, str(FUZZING), kind, str(cases), str(seed), str(work)],
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            timeout=600,
        )
        case = {path.name: path.read_bytes()[:2000] for path in work.iterdir() if path.is_file()}
    slow = done.returncode in (-signal.SIGPROF, -signal.SIGKILL)
    assert not slow, f"{kind}: a case was not done in time: {case}"
    assert done.returncode == 0, f"{kind}: the process ended: {done.stderr[:2000]} {case}"
    found = json.loads(done.stdout)
    assert "fault" not in found, f"{kind}, {found['fault']} {case}"
    return found


def require_held(kind: str, cases: int, seed: int) -> None:
    """Nothing but errors of ours, in time, in little memory, and not too few of them."""
    cases = int(os.environ.get("CAMBRIAN_FUZZ", cases // DEAR.get(kind, 1)))
    found = fuzzed(kind, cases, seed)
    print(found)
    assert found["grown"] < fuzzing.MEMORY
    assert cases // 8 < found["refused"] < cases  # or the mutations do not reach what is checked


@pytest.mark.parametrize("kind", KINDS)
def test_no_file_makes_more_than_a_sentence(kind: str) -> None:
    require_held(kind, FEW, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_file_of_many_makes_more_than_a_sentence(kind: str) -> None:
    require_held(kind, MANY, seed=1)


# -- what it found ------------------------------------------------------------------------------


def refusal(read: Callable[[], object], kind: type[CambrianError] = BrokenFile) -> str:
    """The sentence that reading ends with, which must come soon."""
    begin = time.process_time()
    with pytest.raises(kind) as caught:
        read()
    assert time.process_time() - begin < fuzzing.SECONDS
    return str(caught.value)


@pytest.mark.parametrize("key", ["a" + ".a" * 40, r'"\""' + r'."\""' * 40, "'.'" + " . '.'" * 40])
def test_a_key_of_many_parts_is_refused_before_it_is_parsed(key: str, tmp_path: Path) -> None:
    """Python's parser takes memory by the square: 200 kB of "a.a.a" took all there is."""
    file = tmp_path / "f.toml"
    for text in (f"{key} = 1\n", f"[{key}]\n", f"x = {{ {key} = 1 }}\n"):
        file.write_text(text)
        assert "more than 32 parts" in refusal(lambda: read_registry_file(file, "test"))
        assert "more than 32 parts" in refusal(lambda: Lock.read(file))
        assert "more than 32 parts" in refusal(lambda: read_changes(file), UsageError)


def test_settings_that_nest_are_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text("x = " + "[" * 3000)
    assert "nests too deeply" in refusal(lambda: read_changes(file), UsageError)
    for value in ("[" * 3000, "1" * 5000):
        assert parse_assignment(f"x={value}") == ("x", value)


def test_a_thousand_faulty_tables_cost_no_more_than_their_text(tmp_path: Path) -> None:
    """Each fault's line took parsing the file as often as it has lines: 20 s for 400."""
    file = tmp_path / "f.toml"
    file.write_text("".join(f"[models.a{i}]\nsummary = 1\n" for i in range(1000)))
    begin = time.process_time()
    _, faults = read_registry_file(file, "test")
    assert time.process_time() - begin < fuzzing.SECONDS
    assert [int(fault.reason.split("line ")[1].split(":")[0]) for fault in faults] == [
        2 * i + 2 for i in range(1000)
    ]


def test_a_faults_line_is_told_behind_anything(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text(
        '[models.a]  # "\narchitecture = "x]"\nsummary = """\n[models.b]\n"""\n'
        "config.a = [\n1, # ]\n]\n"
        "license = '''\n''''\nfiles = {\"b\" = '0'}\n[datasets]\nc.kind = 1\n"
    )
    _, faults = read_registry_file(file, "test")
    assert [fault.reason.split(": ")[0][-2:] for fault in faults] == ["11", "13"]


def test_a_lock_reads_what_it_wrote() -> None:
    """JSON's halves of a character beyond 16 bits are none in TOML."""
    files = {"\U0001f600\x7f.json": PinnedFile(3, "a" * 64)}
    lock = Lock({'\U0001f600 "\\': Pin("b/c", "1" * 40, files, "m\x7f\n")})
    with tempfile.TemporaryDirectory() as folder:
        lock.write(Path(folder, "cambrian.lock"))
        assert Lock.read(Path(folder, "cambrian.lock")) == lock


def test_half_a_character_is_no_json(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"a": "\\ud83d\\ude00"}')
    assert read_json(file) == {"a": "\U0001f600"}
    file.write_text('{"a": "\\uD800"}')
    assert "surrogates not allowed" in refusal(lambda: read_json(file))


def test_an_index_of_more_than_memory_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors.index.json"
    with file.open("wb") as sparse:
        sparse.truncate(17 << 20)
    assert "cannot be right" in refusal(lambda: read_index(file))


def test_layers_without_end_are_not_built(tmp_path: Path) -> None:
    """3000 layers took 7 s to be refused; a billion, all the memory there is."""
    spec = load_registry().models["gpt"]
    data, _ = prepared(spec)
    save_description(tmp_path, spec, data.config, data.processor, "0")
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described | {"n_layer": 2000}))
    opened = Checkpoint.open(tmp_path, [spec])
    told = refusal(lambda: require_match(spec, opened.config, {}, tmp_path))
    assert "more than 1,000 tensors" in told


def test_a_sentence_is_one_line_whatever_a_file_says(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), one_line_errors():
        raise CambrianError("it says\n\x1b[2Jö\r\u2028\ud800")
    assert capsys.readouterr().err == "error: it says  [2Jö   \n"


# -- what it found in tokenizers, whose library is written in Rust ------------------------------


@pytest.fixture
def described() -> dict[str, Any]:
    """A tokenizer.json, parsed."""
    return json.loads(fuzzing_seeds.trained()[0]["tokenizer.json"])


def load(description: dict[str, Any]) -> Tokenizer:
    return Tokenizer(json.dumps(description).encode(), {}, "it")


def test_a_panic_while_encoding_is_one_sentence(described: dict[str, Any]) -> None:
    """A panic is no Exception to Python; this one is of a regular expression without end."""
    pattern = {"Regex": "(a+)+$"}
    described["pre_tokenizer"] = {
        "type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False
    }  # fmt: skip
    tokenizer = load(described)
    told = refusal(lambda: tokenizer.encode("a" * 40 + "b"), CambrianError)
    assert told.startswith("The tokenizer cannot encode this text (")


def rules(size: int, trie: bytes, texts: bytes) -> dict[str, str]:
    """A step of normalisation by compiled rules."""
    data = size.to_bytes(4, "little") + trie + texts
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (rules(4000, bytes(8), b""), "cut short"),  # of 4 GB, the process ended
        (rules(7, bytes(8), b""), "cut short"),
        (rules(8, bytes(8), b"a" * 2000 + b"\0"), "a whole text"),
        (rules(0, b"", b"a\0"), "lead nowhere"),
        (rules(1024, b"\0\x04\x04\0" + bytes(1020), b"a\0"), "lead nowhere"),  # to node 257
        (rules(1024, b"\0\x05\0\0\2\0\0\x80" + bytes(1016), b"a\0"), "lead nowhere"),  # text 2
        (rules(1024, b"\0\x05\0\0\1\0\0\x80" + bytes(1016), "\xf6\0".encode()), "nowhere"),
    ],
)
def test_rules_that_cannot_be(step: Any, told: str, described: dict[str, Any]) -> None:
    described["normalizer"] = {"type": "Sequence", "normalizers": [step]}
    assert told in refusal(lambda: load(described))


@pytest.mark.parametrize("pattern", [{"String": "a"}, {"String": ""}, {"Regex": "x*"}])
def test_replacements_that_multiply_are_refused(pattern: Any, described: dict[str, Any]) -> None:
    """Of ten that make 40 letters of one, one letter takes all the memory there is."""
    step = {"type": "Replace", "pattern": pattern, "content": "a" * 40}
    usual = {"type": "Replace", "pattern": {"String": " "}, "content": "_"}
    for part, steps in (("normalizer", "normalizers"), ("decoder", "decoders")):
        bomb = described | {part: {"type": "Sequence", steps: [step] * 2}}
        assert "times as long" in refusal(lambda bomb=bomb: load(bomb))
        assert load(described | {part: {"type": "Sequence", steps: [step, *[usual] * 50]}})


def test_a_vocab_json_with_gaps_is_refused_before_it_is_walked(tmp_path: Path) -> None:
    """With one id of 2 ** 31 the library wrote a warning of 8 GB."""
    files = fuzzing_seeds.byte_level()[0]
    for number, told in ((5000, "vocab.json gives 261 tokens ids as high as 5000"), ("x", "whole")):
        fuzzing.write({**files, "vocab.json": gap(files["vocab.json"], number)}, tmp_path)
        assert told in refusal(lambda: Tokenizer.load(tmp_path))


def gap(vocabulary: bytes, number: Any) -> bytes:
    return json.dumps(json.loads(vocabulary) | {"<|endoftext|>": number}).encode()


def test_a_librarys_error_of_many_lines_is_one(tmp_path: Path) -> None:
    files = fuzzing_seeds.byte_level()[0]
    fuzzing.write({**files, "vocab.json": gap(files["vocab.json"], -1)}, tmp_path)
    assert "\n" not in refusal(lambda: Tokenizer.load(tmp_path))
