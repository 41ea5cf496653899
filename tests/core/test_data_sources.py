"""Sources: what each kind yields, and how it fails."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cambrian.data import sources
from cambrian.data.config import TextData
from cambrian.data.sections import sections
from cambrian.data.sources import File, Strings, expand
from cambrian.errors import BrokenFile, CambrianError, NotFound, UsageError
from cambrian.specs import DatasetEntry

RAW = TextData(clean=False, normalize="")


def entry(*source: str, kind: str = "text") -> dict[str, DatasetEntry]:
    return {"mine": DatasetEntry(name="mine", kind=kind, source=source)}


def documents(*items: str, tmp_path: Path, datasets=None, text_key: str = "text") -> list[str]:
    """Read everything the items name."""
    texts, pieces = [], []
    for source in expand(items, lambda: datasets or {}, tmp_path):
        for text, last in source.chunks(text_key, lambda _: None):
            pieces.append(text)
            if last:
                texts.append("".join(pieces))
                pieces.clear()
    assert not pieces
    return texts


def test_a_file_is_a_document_and_a_record_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ä one\ntwo", "utf-8")
    lines = [{"text": "x\ny", "n": 1}, {"text": "é 😀"}, {"text": ""}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    found = documents(str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl"), tmp_path=tmp_path)
    assert found == ["ä one\ntwo", "x\ny", "é 😀", ""]


def test_gzip_of_either(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one"))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"body": "two"}\n{"body": "three"}'))
    names = [str(tmp_path / "a.txt.gz"), str(tmp_path / "b.jsonl.gz")]
    assert documents(*names, tmp_path=tmp_path, text_key="body") == ["one", "two", "three"]


def test_a_folder_is_read_in_order_without_dotfiles(tmp_path: Path) -> None:
    for name in ["b.txt", "a/z.txt", "a/c.txt", ".hidden", ".git/config", "a/.x"]:
        (tmp_path / "t" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "t" / name).write_text(name)
    assert documents(str(tmp_path / "t"), tmp_path=tmp_path) == ["b.txt", "a/c.txt", "a/z.txt"]


def test_globs(tmp_path: Path) -> None:
    for name in ["b.txt", "a.txt", "c.md", "d/e.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert documents(f"{tmp_path}/*.txt", tmp_path=tmp_path) == ["a.txt", "b.txt"]
    deep = documents(f"{tmp_path}/**/*.txt", tmp_path=tmp_path)
    assert deep == ["a.txt", "b.txt", "d/e.txt"]


def test_a_file_whose_name_looks_like_a_glob(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("it")
    assert documents(str(tmp_path / "a[1].txt"), tmp_path=tmp_path) == ["it"]


def test_named_data_sets(tmp_path: Path) -> None:
    import pydoc_data.topics

    topics = pydoc_data.topics.topics
    found = documents("mine", tmp_path=tmp_path, datasets=entry("python:pydoc_data.topics:topics"))
    assert found == [topics[key] for key in sorted(topics)]
    (tmp_path / "a.txt").write_text("file")
    assert documents("mine", tmp_path=tmp_path, datasets=entry(f"{tmp_path}/*.txt")) == ["file"]


def test_a_data_set_that_is_no_text_says_so(tmp_path: Path) -> None:
    for datasets, message in [
        (entry("x", kind="images"), "holds images, not text"),
        (entry("python:sys:path"), "no mapping of strings"),
        (entry("python:no.such.module:x"), "Cannot load no.such.module:x"),
        (entry("mine"), "may not be made of another"),
    ]:
        with pytest.raises(CambrianError, match=message):
            documents("mine", tmp_path=tmp_path, datasets=datasets)


def test_what_is_not_there_names_what_is_near(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"'minne'\. Did you mean 'mine'"):
        documents("minne", tmp_path=tmp_path, datasets=entry("x"))
    with pytest.raises(NotFound, match=r"no file, folder or data set '.*\*\.txt'"):
        documents(f"{tmp_path}/*.txt", tmp_path=tmp_path)
    with pytest.raises(UsageError, match="no regular file"):
        documents("/dev/null", tmp_path=tmp_path)


def test_standard_input(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cambrian.data.sources import expand\n"
        "s, = expand(['-'], dict, Path(sys.argv[1]))\n"
        "print(s.name, s.size, [c for c in s.chunks('text', print)])"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        input="héllo\n".encode(),
        capture_output=True,
        check=True,
    )
    assert child.stdout.decode() == "standard input 7 [('héllo\\n', False), ('', True)]\n"
    with pytest.raises(UsageError, match="read only once"):
        documents("-", tmp_path=tmp_path)  # where the child has left its copy


@pytest.mark.parametrize("before", [0, 5, (1 << 20) - 2, (1 << 20) - 1, (1 << 20) + 3])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_bytes_that_are_no_utf8_are_named_by_their_offset(
    before: int, bom: bytes, tmp_path: Path
) -> None:
    """Also where a character straddles two pieces."""
    good = (bom + "é".encode() * before)[:before]
    good = good[: len(good) - (len(good) - len(bom)) % 2] if before > len(bom) else bom
    for bad in [b"\xff", b"\xe2\x82", b"\xc3"]:
        (tmp_path / "a.txt").write_bytes(good + bad + (b"x" if bad == b"\xff" else b""))
        with pytest.raises(BrokenFile, match=rf"a\.txt is not UTF-8 at byte {len(good)} "):
            documents(str(tmp_path / "a.txt"), tmp_path=tmp_path)
    (tmp_path / "a.txt").write_bytes(good)
    assert "".join(documents(str(tmp_path / "a.txt"), tmp_path=tmp_path)) == good.decode(
        "utf-8-sig"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": ', "not a JSON record"),
        (b'"text"', "no text in 'text'"),
        (b'{"txt": "a"}', "no text in 'text'.*data.text_key"),
        (b'{"text": 3}', "no text in 'text'"),
        (b'{"text": "\\ud83d"}', "half a surrogate pair at character 0"),
        (b'{"text": "\xff"}', "not a JSON record"),
        (b'{"text":' + b"[" * 100_000, "not a JSON record"),
    ],
)
def test_a_bad_record_is_named_by_its_line(line: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\\ud83d\\ude00"}\n\n' + line + b"\n")
    with pytest.raises(BrokenFile, match=rf"a\.jsonl, line 3: .*{message}"):
        documents(str(tmp_path / "a.jsonl"), tmp_path=tmp_path)


def test_a_record_without_bounds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "RECORD", 1 << 20)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + b"x" * (1 << 20))
    with pytest.raises(BrokenFile, match="line 1: a record of more than 1 MiB"):
        documents(str(tmp_path / "a.jsonl"), tmp_path=tmp_path)


def test_a_damaged_gzip_file_is_one_sentence(tmp_path: Path) -> None:
    whole = gzip.compress(bytes(range(32, 127)) * 2000)
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    for content in [whole[:-9], bytes(damaged), b"no gzip at all", b"\x1f\x8b"]:
        (tmp_path / "a.txt.gz").write_bytes(content)
        with pytest.raises(BrokenFile, match=r"a\.txt\.gz is not a whole gzip file"):
            documents(str(tmp_path / "a.txt.gz"), tmp_path=tmp_path)


def test_binary_is_told_by_a_nul(tmp_path: Path) -> None:
    for name, content, binary in [
        ("a.png", b"\x89PNG\r\n\0\0", True),
        ("b.gz", gzip.compress(b"a\0b"), True),
        ("c.gz", gzip.compress(b"text"), False),
        ("d.txt", b"text", False),
        ("e.gz", b"broken", False),
    ]:
        (tmp_path / name).write_bytes(content)
        assert File(str(tmp_path / name), name).hash(lambda _: None)[1] == binary


def test_a_file_of_many_pieces_is_whole(tmp_path: Path) -> None:
    text = "abcdé\n" * 500_000
    (tmp_path / "a.txt").write_text(text, "utf-8")
    file = File(str(tmp_path / "a.txt"), "a.txt")
    positions: list[int] = []
    pieces = list(file.chunks("text", positions.append))
    assert "".join(piece for piece, _ in pieces) == text
    assert max(len(piece) for piece, _ in pieces) <= 1 << 20
    assert positions == sorted(positions)
    assert len(positions) >= 3
    assert "".join(s.text for s in sections(pieces, RAW)) == text


def test_strings_hash_depends_on_every_value() -> None:
    def digest(texts: dict[str, str]) -> str:
        return Strings("x", texts).hash(lambda _: None)

    assert digest({"a": "1", "b": "2"}) == digest({"b": "2", "a": "1"})
    assert len({digest(t) for t in [{"a": "12"}, {"a": "1", "b": "2"}, {"a": "21"}]}) == 3
