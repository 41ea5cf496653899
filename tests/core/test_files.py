"""Whole or not at all."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cambrian.errors import BrokenFile, UsageError
from cambrian.files import (
    read_json,
    require_free,
    sha256,
    staged_folder,
    write_bytes,
    write_json,
    write_with,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_bytes(file, b"old")

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"new, but")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_with(file, fail)
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A limit on file size stands in for the full disk: the kernel refuses the same write."""
    file = tmp_path / "a.bin"
    write_bytes(file, b"old")
    code = (
        "import resource, signal, sys; from pathlib import Path;"
        "from cambrian.files import write_bytes;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "write_bytes(Path(sys.argv[1]), b'x' * 5000)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True)
    assert done.returncode == 1 and "File too large" in done.stderr
    assert file.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_staged_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(RuntimeError), staged_folder(target) as staging:
        (staging / "a").write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    for text in ("first", "second"):
        with staged_folder(target) as staging:
            (staging / "sub").mkdir()
            (staging / "sub" / "a").write_text(text)
            assert not target.exists() or (target / "sub" / "a").read_text() == "first"
        assert (target / "sub" / "a").read_text() == text
    assert os.listdir(tmp_path) == ["out"]


def test_json_is_read_with_suspicion(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"b": 1, "a": "é"})
    assert read_json(file) == {"b": 1, "a": "é"}
    assert file.read_text("utf-8").index("b") < file.read_text("utf-8").index("é")
    for content, message in (
        (b"[1]", "must hold a JSON object, not list"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ):
        file.write_bytes(content)
        with pytest.raises(BrokenFile, match=message):
            read_json(file)
    file.write_text('{"a": "%s"}' % ("x" * 100))
    with pytest.raises(BrokenFile, match="more than 50 cannot be right"):
        read_json(file, limit=50)


def test_outputs_are_not_overwritten(tmp_path: Path) -> None:
    require_free(tmp_path / "new", False, "hint")
    require_free(tmp_path, False, "hint")  # empty folder
    (tmp_path / "a").write_text("")
    with pytest.raises(UsageError, match="exists already; hint"):
        require_free(tmp_path, False, "hint")
    require_free(tmp_path, True, "hint")


def test_sha256_is_the_standards(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
