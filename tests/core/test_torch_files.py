"""What torch.save wrote, converted: bit-equal to torch's own reading, or one sentence."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from cambrian import torch_files, torch_pickle
from cambrian.errors import BrokenFile, CambrianError
from cambrian.files import cache_folder, sha256
from cambrian.torch_files import converted, torch_name
from torch_streams import rebuilt, stream

DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8")
FORMS = pytest.mark.parametrize("zipped", [True, False])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cambrian" / "converted"


def saved(value: Any, folder: Path, zipped: bool = True, **options: Any) -> Path:
    file = folder / "pytorch_model.bin"
    torch.save(value, file, _use_new_zipfile_serialization=zipped, **options)
    return file


def tensors() -> dict[str, Tensor]:
    """Every type of number; views that are sliced, turned, shared, empty, without dimensions."""
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    found = {name: (torch.randn(3, 5) * 100).to(getattr(torch, name)) for name in DTYPES}
    found |= {"bool": torch.tensor([True, False, True]), "nan": torch.tensor([torch.nan, -0.0])}
    found |= {"base": base, "tied": base, "turned": base.t(), "row": base[2], "column": base[:, 3]}
    found |= {"step": base[1::2, ::3], "one": base[4, 4], "none": torch.zeros(0, 3)}
    found |= {
        "spread": torch.arange(4).expand(1, 4),
        "last": torch.zeros(3)[3:],
        "alone": found["bool"][1],
    }
    return found


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def require_equal(file: Path, expected: dict[str, Tensor]) -> None:
    found = load_file(converted(file))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(found[name]) == bits(tensor), name


def refused(file: Path) -> str:
    """The one sentence that a file is refused with; nothing is left in the cache."""
    with pytest.raises(BrokenFile) as caught:
        converted(file)
    message = str(caught.value)
    assert message.startswith(f"{file} cannot be read as weights of torch: ")
    assert "\n" not in message and len(message) < 400
    assert not cache_folder("converted").exists() or not any(cache_folder("converted").iterdir())
    return message


@FORMS
def test_every_tensor_is_bit_equal_to_torchs(zipped: bool, tmp_path: Path) -> None:
    file = saved(tensors(), tmp_path, zipped)
    require_equal(file, torch.load(file, weights_only=True))
    assert len(load_file(converted(file))) == 22


@FORMS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols_of_pickle(protocol: int, zipped: bool, tmp_path: Path) -> None:
    file = saved(tensors(), tmp_path, zipped, pickle_protocol=protocol)
    require_equal(file, tensors())


@FORMS
def test_a_modules_state(zipped: bool, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    state = module.state_dict()
    assert isinstance(state, OrderedDict) and hasattr(state, "_metadata")
    file = saved(state, tmp_path, zipped)
    require_equal(file, dict(state))
    parameters = dict(module.named_parameters())
    assert isinstance(parameters["0.weight"], nn.Parameter)
    file = saved(parameters, tmp_path, zipped)
    require_equal(file, dict(parameters))


@FORMS
def test_tensors_one_level_down_and_values_beside_them(zipped: bool, tmp_path: Path) -> None:
    held = {"a": torch.ones(2), "version": 3}
    file = saved(
        {"state_dict": held, "epoch": 5, "note": "x", "args": {"lr": 0.1}}, tmp_path, zipped
    )
    require_equal(file, {"a": held["a"]})
    with safe_open(converted(file), "pt") as opened:
        about = opened.metadata()
    assert about["ignored"] == "4"
    assert (about["format"], about["source"]) == ("pt", "pytorch_model.bin")
    assert about["source_sha256"] == sha256(file)
    assert about["converter"].startswith("cambrian ")


def test_what_python_2_wrote(tmp_path: Path) -> None:
    """An OrderedDict of pairs, strings of bytes, and `_rebuild_tensor`."""
    values = torch.arange(6.0)
    file = tmp_path / "pytorch_model.bin"
    program = b"\x80\x02ccollections\nOrderedDict\n](U\x01w" + rebuilt() + b"ta\x85R."
    file.write_bytes(stream(program, numbers=bits(values)))
    require_equal(file, {"w": values.view(2, 3)})


class Call:
    """Pickled, a call of a function with arguments."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "system": (lambda: {"a": Call(os.system, "touch /tmp/owned")}, r"it calls posix.system, which"),
    "eval": (lambda: {"a": Call(eval, "1")}, "_.eval, which"),
    "getattr": (lambda: {"a": Call(getattr, "a", "b")}, "_.getattr, which"),
    "array": (lambda: {"a": np.zeros(3)}, "it holds an array of numpy (numpy"),
    "scalar": (lambda: {"a": torch.ones(1), "b": np.float64(3)}, "it holds an array of numpy"),
    "module": (lambda: nn.Linear(2, 2), "a whole module (torch.nn.modules.linear.Linear); save"),
    "object": (lambda: {"a": Path("x")}, "it holds an object of the class pathlib.PosixPath; save"),
    "complex": (lambda: {"a": torch.zeros(2, dtype=torch.complex64)}, "torch.ComplexFloatStorage"),
    "sparse": (lambda: {"a": torch.eye(3).to_sparse()}, "dense tensors of real numbers"),
    "float8": (lambda: {"a": torch.zeros(2).to(torch.float8_e5m2)}, "dense tensors of real"),
    "tensor": (lambda: torch.ones(2), "it holds a tensor without a name where"),
    "list": (lambda: [torch.ones(2)], "it holds list where a state_dict is wanted"),
    "nothing": (lambda: {"a": 1}, "it holds no tensors by name"),
    "numbered": (lambda: {0: torch.ones(1)}, "it holds tensors without names"),
    "keyed": (lambda: {("a", 1): torch.ones(1)}, "a key of type tuple"),
    "two sets": (lambda: {k: {"a": torch.ones(1)} for k in "gd"}, "('g', 'd'); save the one that"),
    "beside": (lambda: {"a": torch.ones(1), "d": {"a": torch.ones(2)}}, "more of them in 'd'"),
    "spread": (lambda: {"a": torch.ones(1).expand(1000, 1000)}, "'a' reaches beyond its storage"),
    "often": (lambda: dict.fromkeys(map(str, range(999)), torch.ones(99)), "its tensors overlap"),
}  # fmt: skip


@FORMS
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code", "ignore:Sparse")
@pytest.mark.parametrize("kind", HOSTILE)
def test_anything_but_tensors_is_refused(kind: str, zipped: bool, tmp_path: Path) -> None:
    make, reason = HOSTILE[kind]
    message = refused(saved(make(), tmp_path, zipped))
    assert reason in message
    assert not Path("/tmp/owned").exists()


SIX = {"shape": b"K\x06\x85", "strides": b"K\x01\x85"}
LARGE = b"J\xff\xff\xff\x7f"
OUTSIDE = "'a' reaches beyond its storage"


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (rebuilt(numbers=b"K\x07"), "another size than its pickle says"),
        (rebuilt(offset=b"K\x01"), OUTSIDE),
        (rebuilt(**SIX | {"shape": LARGE + b"\x85"}), OUTSIDE),
        (rebuilt(**SIX | {"shape": LARGE + LARGE + b"\x86", "strides": b"K\0K\0\x86"}), OUTSIDE),
        (rebuilt(**SIX | {"strides": b"K\x02\x85"}), OUTSIDE),
        (rebuilt(**SIX | {"strides": b"K\x01K\x01\x86"}), OUTSIDE),
    ],
)
def test_tensors_outside_their_storage(tensor: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(stream(b"\x80\x02}U\x01a" + tensor + b"s."))
    assert reason in refused(file)


def test_a_dictionary_that_is_held_a_million_times_is_read_once(tmp_path: Path) -> None:
    inner = {f"{i}": i for i in range(20_000)}
    file = saved({f"{i}": inner for i in range(20_000)}, tmp_path)
    begin = time.perf_counter()
    assert "it holds no tensors by name" in refused(file)
    assert time.perf_counter() - begin < 20  # seconds; 20,000 times 20,000 would take a minute


def repacked(file: Path, change: Callable[[str, bytes], bytes], **options: Any) -> Path:
    """The archive with every entry changed; one that becomes empty is left out."""
    with zipfile.ZipFile(file) as archive:
        held = {name: change(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, data in held.items():
            if data:
                archive.writestr(name, data)
    return file


def test_archives_that_torch_does_not_write(tmp_path: Path) -> None:
    def put(end: str, new: bytes) -> Path:
        file = saved({"a": torch.zeros(1 << 16)}, tmp_path)
        return repacked(file, lambda name, data: new if name.endswith(end) else data)

    assert "not little-endian" in refused(put("/byteorder", b"big"))
    assert "another size than its pickle says" in refused(put("/data/0", bytes(1 << 17)))
    assert "a storage is missing" in refused(put("/data/0", b""))
    assert "without the data.pkl" in refused(put("/data.pkl", b""))
    assert "something follows its pickle" in refused(put("/data.pkl", b"\x80\x02}.}."))
    assert "pickle has 67,108,865 bytes" in refused(put("/data.pkl", bytes((64 << 20) + 1)))
    same = put("/version", b"9")
    squeezed = repacked(same, lambda _, data: data, compression=zipfile.ZIP_DEFLATED)
    assert squeezed.stat().st_size < 5000
    assert "is compressed" in refused(squeezed)
    require_equal(put("/version", b"9"), {"a": torch.zeros(1 << 16)})


def test_an_archive_of_endless_entries(tmp_path: Path) -> None:
    """Its list of entries would be read, and kept, whole: refused by its length alone."""
    file = tmp_path / "pytorch_model.bin"
    size = 20 << 20
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9999, 9999, size, 4, 0)
    file.write_bytes(b"PK\3\4" + bytes(size) + end)
    assert "its list of entries is too long" in refused(file)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!doctype html>", "a web page"),
        (b"what is this?", "neither a zip archive nor a pickle"),
        (bytes(257) + b"ustar", "tar archive"),
        (pickle.dumps({"a": 1}, 2), "not one that torch.save wrote"),
        (pickle.dumps(torch_pickle.MAGIC, 2) + pickle.dumps(7, 2) * 2, "unknown version"),
        (b"PK\3\4" + bytes(300), "zip archive is damaged"),
        (stream(b"\x80\x02}U\x01a" + rebuilt() + b"s.") + b"x", "something follows its end"),
        (stream(b"\x80\x02}U\x01a" + rebuilt() + b"s.")[:-3], "3 bytes are missing at its end"),
        (stream(b"\x80\x02}U\x01a" + rebuilt() + b"s.", b"\x80\x02]."), "a storage is missing"),
        (stream(b"\x80\x02}.", b"\x80\x02]U\x010a."), "that no tensor is in"),
        (stream(b"\x80\x02}.", little=False), "not little-endian"),
    ],
)  # fmt: skip
def test_wrong_files_are_told_apart(content: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(content)
    assert reason in refused(file)


@FORMS
def test_truncated_anywhere(zipped: bool, tmp_path: Path) -> None:
    file = saved(tensors(), tmp_path, zipped)
    whole = file.read_bytes()
    for step in range(50):
        file.write_bytes(whole[: len(whole) * step // 50])
        refused(file)


@FORMS
def test_damage_anywhere_is_noticed_or_harmless(zipped: bool, tmp_path: Path) -> None:
    """Nothing but BrokenFile comes out, and what is read is as large as what was saved."""
    chance = random.Random(0)
    held = {"a": torch.ones(3), "b": torch.zeros(2, 2, dtype=torch.int64), "n": 5}
    file = saved(held, tmp_path, zipped)
    whole, passed = file.read_bytes(), 0
    for _ in range(1000):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        file.write_bytes(content)
        with file.open("rb") as source:
            try:
                value = torch_files._read(source).value  # pyright: ignore[reportPrivateUsage]
                named, _ = torch_files._named_tensors(value)  # pyright: ignore[reportPrivateUsage]
                passed += len(named) > 0
            except torch_pickle.Refused:
                continue
        if passed < 50:  # the rest of the way writes to the disk
            try:
                load_file(converted(file))
            except BrokenFile:
                continue
    assert 0 < passed < 1000


def test_converted_once_and_again_if_it_is_damaged(tmp_path: Path, cache: Path) -> None:
    file = saved({"a": torch.arange(9.0)}, tmp_path)
    made = converted(file)
    assert made == cache / f"{sha256(file)}.safetensors"
    before = made.stat()
    assert converted(file) == made and made.stat().st_mtime_ns == before.st_mtime_ns
    whole = made.read_bytes()
    for damaged in (
        whole[:-1],
        b"",
        whole[:-1] + b"x",
        whole.replace(b"source_sha", b"xource_sha"),
    ):
        made.write_bytes(damaged)
        converted(file)
        assert made.read_bytes() == whole
    assert {path.name for path in cache.iterdir()} - {"verified.json"} == {made.name}
    file.write_bytes(b"")
    with pytest.raises(BrokenFile, match="it is empty"):
        converted(file)
    saved({"a": torch.arange(8.0)}, tmp_path)
    assert converted(file) != made


def test_a_cache_that_cannot_be_written(tmp_path: Path, cache: Path) -> None:
    file = saved({"a": torch.ones(2)}, tmp_path)
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    with pytest.raises(CambrianError, match=r"^Cannot write .*\.safetensors: File exists\."):
        converted(file)
    with pytest.raises(BrokenFile, match=r"^Cannot read .*missing\.bin: No such file"):
        converted(tmp_path / "missing.bin")


def test_processes_that_convert_at_once(tmp_path: Path, cache: Path) -> None:
    file = saved({f"{i}": torch.randn(100, 100) for i in range(50)}, tmp_path)
    code = (
        "import sys; from pathlib import Path; from cambrian.torch_files import converted;"
        "print(converted(Path(sys.argv[1]))); assert 'torch' not in sys.modules"
    )
    words = [sys.executable, "-c", code, str(file)]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert outputs == {str(converted(file))}
    require_equal(file, torch.load(file, weights_only=True))
    assert len({path.name for path in cache.iterdir()} - {"verified.json"}) == 1


def test_a_warm_start_hashes_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, other = saved({"a": torch.arange(9.0)}, tmp_path), tmp_path / "other.bin"
    torch.save({"b": torch.arange(8.0)}, other)
    made = {source: converted(source) for source in (file, other)}
    for path in (*made, *made.values()):
        os.utime(path, ns=(1, 1))
    notes = cache / "verified.json"
    notes.unlink(missing_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr(torch_files, "TICK", 10**30)  # as if the clock stood since they were written
        assert converted(file) == made[file] and not notes.exists()
    assert {source: converted(source) for source in made} == made
    with monkeypatch.context() as patch:
        patch.setattr(torch_files, "sha256", None)
        patch.setattr(torch_files, "is_intact", None)
        assert {source: converted(source) for source in made} == made
    whole = made[file].read_bytes()
    made[file].write_bytes(whole[:-1] + b"x")
    assert converted(file).read_bytes() == whole
    os.utime(made[file], ns=(2, 2))
    made[other].unlink()
    assert converted(file) == made[file]
    assert list(json.loads(notes.read_text())) == [made[file].name], "the other one is gone"
    notes.write_text("[")
    assert converted(file) == made[file] and list(json.loads(notes.read_text()))
    saved({"a": torch.arange(1.0, 10)}, tmp_path)
    require_equal(file, {"a": torch.arange(1.0, 10)})


def test_memory_is_that_of_one_tensor(tmp_path: Path) -> None:
    """64 MB in 16 tensors, one of them turned: the process's own memory grows by far less."""
    held = {f"{i}": torch.randn(1024, 1024) for i in range(15)}
    file = saved({**held, "turned": torch.randn(1024, 1024).t()}, tmp_path)
    code = (
        "import sys, numpy; from pathlib import Path; from cambrian.torch_files import converted\n"
        "def own():\n"
        "    with open('/proc/self/status') as file:\n"
        "        return next(int(line.split()[1]) for line in file if 'RssAnon' in line)\n"
        "import threading, time; before = own(); most = 0; done = False\n"
        "def watch():\n"
        "    global most\n"
        "    while not done: most = max(most, own()); time.sleep(0.001)\n"
        "thread = threading.Thread(target=watch, daemon=True); thread.start()\n"
        "converted(Path(sys.argv[1])); done = True; thread.join(); print(most - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 20_000  # kB


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("model.safetensors", "pytorch_model.bin"),
        ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    ],
)
def test_names_of_the_same_weights(ours: str, theirs: str) -> None:
    assert torch_name(ours) == theirs
