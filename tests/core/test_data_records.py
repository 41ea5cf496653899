"""Examples from files: every form, the split, and what is wrong with a file in one sentence."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from cambrian.data.config import ClassData, PairData, TagData, TextData
from cambrian.data.records import (
    differences,
    labelled,
    paired,
    read_examples,
    read_lines,
    tagged,
)
from cambrian.errors import BrokenFile, CambrianError, NotFound, UsageError

REVIEWS = [("good", "pos"), ("bad", "neg"), ("fine, really", "pos"), ('"quoted"', "neg")]


def classes(*sources: Path | str, **changes: Any) -> list[tuple[str, str]]:
    data = ClassData(source=tuple(map(str, sources)), validation_fraction=0.0, **changes)
    found = read_examples(data, labelled(data))
    assert not found.held_out
    return list(found.train)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.jsonl.gz"])
def test_records(name: str, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text, "label": label, "id": 7}) for text, label in REVIEWS]
    assert classes(write(tmp_path / name, "\n\n".join(lines))) == REVIEWS


def test_labels_may_be_numbers_and_fields_have_other_names(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"review": "x", "stars": 4}\n{"review": "y", "stars": 5}')
    assert classes(file, text_key="review", label_key="stars") == [("x", "4"), ("y", "5")]


@pytest.mark.parametrize("header", ["", "text,label\n"])
def test_comma_separated_values(header: str, tmp_path: Path) -> None:
    body = 'good,pos\nbad,neg\n"fine, really",pos\n"""quoted""",neg\n'
    assert classes(write(tmp_path / "a.csv", header + body)) == REVIEWS


def test_a_header_gives_the_columns_their_order(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv.gz", 'id\tlabel\ttext\n1\tpos\ta "b\n2\tneg\tc\n')
    assert classes(file) == [('a "b', "pos"), ("c", "neg")]


def test_a_field_of_a_table_may_have_lines(tmp_path: Path) -> None:
    assert classes(write(tmp_path / "a.csv", '"one\ntwo",pos\n')) == [("one\ntwo", "pos")]


def test_a_file_a_class(tmp_path: Path) -> None:
    files = [write(tmp_path / f"rt-polarity.{c}", f"{c} 1\n\n{c} 2\r\n") for c in ("pos", "neg")]
    assert classes(*files) == [
        ("pos 1", "pos"),
        ("pos 2", "pos"),
        ("neg 1", "neg"),
        ("neg 2", "neg"),
    ]
    assert sorted(classes(tmp_path)) == sorted(classes(*files))
    with pytest.raises(UsageError, match="alone has one class"):
        classes(files[0])


def test_what_names_have_in_common_is_no_class() -> None:
    assert differences(["rt-polarity.pos", "rt-polarity.neg"]) == ["pos", "neg"]
    assert differences(["a_spam_1.txt", "a_ham_1.txt"]) == ["spam", "ham"]
    assert differences(["good.txt", "god.txt"]) == ["good", "god"]
    assert differences(["x.txt", "x.txt"]) == ["txt", "txt"]


def test_a_folder_a_class(tmp_path: Path) -> None:
    for name, label in [("1.txt", "spam"), ("2.txt", "spam"), ("1.txt", "ham")]:
        write(tmp_path / "mail" / label / name, f"{label}\n{name}\n")
    write(tmp_path / "mail" / ".git" / "x", "no class")
    assert classes(tmp_path / "mail") == [
        ("ham\n1.txt", "ham"),
        ("spam\n1.txt", "spam"),
        ("spam\n2.txt", "spam"),
    ]


def test_texts_are_cleaned_and_kept_once(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", " e\u0301 ,pos\n\u00e9,pos\n\u00e9,neg\n,pos\n")
    assert classes(file) == [("\u00e9", "pos"), ("\u00e9", "neg")]
    assert len(classes(file, deduplicate=False)) == 3


def test_words_and_tags(tmp_path: Path) -> None:
    conll = write(
        tmp_path / "a.conll", "-DOCSTART- O\n\nIda B-PER\nsings O\n\n\nin\tIN\tO\nRome\tNN\tB-LOC\n"
    )
    record = write(tmp_path / "b.jsonl", '{"tokens": ["Hi", "!"], "tags": [1, 0]}')
    data = TagData(source=(str(conll), str(record)), validation_fraction=0.0)
    assert sorted(read_examples(data, tagged(data)).train) == [
        (["Hi", "!"], ["1", "0"]),
        (["Ida", "sings"], ["B-PER", "O"]),
        (["in", "Rome"], ["O", "B-LOC"]),
    ]


def pairs(*sources: Path | str) -> list[tuple[str, str]]:
    data = PairData(source=tuple(map(str, sources)), validation_fraction=0.0)
    return list(read_examples(data, paired(data)).train)


def test_aligned_files(tmp_path: Path) -> None:
    english = write(tmp_path / "t.en.gz", "a dog\n\na cat\n")
    german = write(tmp_path / "t.de.gz", "ein Hund\nnichts\neine Katze\n")
    assert pairs(english, german) == [("a dog", "ein Hund"), ("a cat", "eine Katze")]
    table = write(tmp_path / "t.tsv", "a dog\tein Hund\na cat\teine Katze\n")
    assert pairs(table) == pairs(english, german)
    with pytest.raises(UsageError, match=r"t\.en\.gz has no partner"):
        pairs(english)
    longer = write(tmp_path / "l.de", "ein\nzwei\ndrei\nvier\n")
    with pytest.raises(BrokenFile, match="how many lines"):
        pairs(english, longer)


def test_lines_of_text(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "one\n\ntwo\none\n")
    data = TextData(source=(str(file),), validation_fraction=0.0)
    assert read_lines(data).train == [("one", "one"), ("two", "two")]
    shipped = read_lines(TextData(validation_fraction=0.5))
    assert len(shipped.train) > 1000 and len(shipped.held_out) > 1000


def texts(path: Path, count: int) -> Path:
    return write(path, "".join(f"text {n},{n % 3}\n" for n in range(count)))


def test_the_split_is_by_content_alone(tmp_path: Path) -> None:
    first = texts(tmp_path / "a.csv", 2000)
    lines = first.read_text().splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    second = write(tmp_path / "b.csv", "".join(lines))
    splits = [
        read_examples(data, labelled(data))
        for data in (ClassData(source=(str(file),)) for file in (first, second))
    ]
    held_out = [set(split.held_out) for split in splits]
    assert held_out[0] == held_out[1]
    assert 150 < len(held_out[0]) < 250
    assert len(splits[0].train) + len(held_out[0]) == 2000
    assert splits[0].summary["content_sha256"] != splits[1].summary["content_sha256"]


def test_equal_inputs_are_on_one_side(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "".join(f"text {n // 2},{n % 2}\n" for n in range(400)))
    data = ClassData(source=(str(file),), validation_fraction=0.3)
    found = read_examples(data, labelled(data))
    assert not {text for text, _ in found.train} & {text for text, _ in found.held_out}


def test_something_is_held_out_however_few_there_are(tmp_path: Path) -> None:
    data = ClassData(source=(str(texts(tmp_path / "a.csv", 3)),), validation_fraction=0.001)
    found = read_examples(data, labelled(data))
    assert (len(found.train), len(found.held_out)) == (2, 1)


def test_held_out_files_lose_what_training_has(tmp_path: Path) -> None:
    train, test = texts(tmp_path / "a.csv", 5), texts(tmp_path / "b.csv", 7)
    data = ClassData(source=(str(train),), validation=(str(test),))
    found = read_examples(data, labelled(data))
    assert [text for text, _ in found.held_out] == ["text 5", "text 6"]
    with pytest.raises(UsageError, match="none that"):
        same = ClassData(source=(str(train),), validation=(str(train),))
        read_examples(same, labelled(same))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "{", "line 1: not a JSON record"),
        ("a.jsonl", "\n[1]", "line 2: not a JSON object"),
        ("a.jsonl", '{"text": "x"}', "no 'label'"),
        ("a.jsonl", '{"text": ["x"], "label": 1}', "'text' must be a text"),
        ("a.csv", "x,1\ny\n", "line 2: 1 columns"),
        ("a.csv", "a\0b", "columns|NUL"),
    ],
)
def test_a_wrong_file_is_one_sentence(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(BrokenFile, match=message) as caught:
        classes(write(tmp_path / name, content))
    assert str(tmp_path / name) in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    for name, content in [("a.csv", b"ok,1\n\xff,1\n"), ("a.csv.gz", b"no gzip")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CambrianError, match=r"not UTF-8|not a whole gzip"):
            classes(tmp_path / name)


@pytest.mark.parametrize("header", ["sentence\tlabel", "label\treview", "text\tclass"])
def test_a_header_with_one_of_the_keys_is_no_example(header: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.tsv", f"{header}\nfine\t1\n")
    with pytest.raises(BrokenFile, match=r"the header names .* end in _key"):
        classes(file)


def test_files_of_one_name_are_no_classes(tmp_path: Path) -> None:
    files = [write(tmp_path / c / "reviews.txt", f"{c}\n") for c in ("pos", "neg")]
    with pytest.raises(UsageError, match="tell no classes"):
        classes(*files)


@pytest.mark.parametrize("text", ['{"en": "a"}', "null", '["a"]', r'"\ud800"'])
def test_a_field_that_is_no_text(text: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", f'{{"text": {text}, "label": "x"}}\n')
    with pytest.raises(BrokenFile, match="line 1"):
        classes(file)
    file = write(tmp_path / "b.jsonl", f'{{"text": "x", "label": {text}}}\n')
    with pytest.raises(BrokenFile, match="line 1"):
        classes(file)


def test_an_example_without_a_side_is_left_out(tmp_path: Path) -> None:
    assert classes(write(tmp_path / "a.csv", "text,label\na,\n ,p\nb,n\n")) == [("b", "n")]


def test_settings_that_make_no_sense() -> None:
    for change, message in {
        "normalize": ("nfc", "no Unicode form"),
        "validation_fraction": (1.5, "no fraction"),
    }.items():
        value, words = message
        data = ClassData(**{change: value})
        with pytest.raises(UsageError, match=words):
            read_examples(data, labelled(data))


def test_a_named_data_set_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "t.en", "one\ntwo\n")
    write(tmp_path / "t.de", "eins\nzwei\n")
    files = [str(tmp_path / name) for name in ("t.en", "t.de")]
    write(
        tmp_path / "cambrian.toml",
        f'[datasets.mt]\nkind = "pairs"\nsource = {json.dumps(files)}\nsummary = "x"\n'
        '[datasets.loop]\nkind = "pairs"\nsource = ["loop"]\nsummary = "x"\n',
    )
    monkeypatch.chdir(tmp_path)
    data = PairData(source=("mt",), validation_fraction=0.0)
    assert read_examples(data, paired(data)).train == [("one", "eins"), ("two", "zwei")]
    data = PairData(source=("loop",))
    with pytest.raises(NotFound, match="loop"):
        read_examples(data, paired(data))


def test_only_what_is_measured_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "a,p\nb,n\n")
    data = ClassData(source=("gone",), validation=(str(file),))
    assert read_examples(data, labelled(data), evaluate_only=True).held_out == [
        ("a", "p"), ("b", "n")
    ]  # fmt: skip


def test_lists_must_match(tmp_path: Path) -> None:
    for content, message in [
        ('{"tokens": ["a"], "tags": []}', "1 words but 0 tags"),
        ('{"tokens": "a", "tags": ["x"]}', "'tokens' must be a list"),
    ]:
        data = TagData(source=(str(write(tmp_path / "a.jsonl", content)),))
        with pytest.raises(BrokenFile, match=message):
            read_examples(data, tagged(data))
    data = TagData(source=(str(write(tmp_path / "a.conll", "word\n")),))
    with pytest.raises(BrokenFile, match="a word without a tag"):
        read_examples(data, tagged(data))


def test_names_that_name_nothing() -> None:
    with pytest.raises(NotFound, match="Did you mean 'python-topics'"):
        classes("python-topic")
    with pytest.raises(UsageError, match="holds pairs, not labelled"):
        classes("python-dates")
    with pytest.raises(UsageError, match=r"data\.source is empty"):
        classes()
    with pytest.raises(UsageError, match="no fraction"):
        data = ClassData(validation_fraction=1.5)
        read_examples(data, labelled(data))
