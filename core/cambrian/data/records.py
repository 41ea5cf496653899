"""Examples from files: inputs with what is expected of each, read, cleaned and split.

An example is a pair (input, expected): a text and its class, words and their tags, a source and
its target. They are held in memory; raw text of any size is `text`'s business.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeAlias, cast

from cambrian.data.config import ClassData, ExampleData, PairData, TagData, TextData
from cambrian.data.sections import tidy
from cambrian.data.sources import File, Source, Strings, expand, require_characters
from cambrian.data.text import require_sense
from cambrian.errors import BrokenFile, CambrianError, UsageError
from cambrian.specs import PYTHON, DatasetEntry, Ref

Example: TypeAlias = tuple[Any, Any]
Plain = Callable[[Sequence[File]], Iterator[Example]]
FIELD = 16 << 20  # characters that a field of a CSV file may have

csv.field_size_limit(FIELD)


@dataclass(frozen=True)
class Form:
    """How examples of one kind are written down.

    kind: of a DatasetEntry. keys: the fields of a record, input and expected. lists: whether they
    are lists of words and not texts. plain: what plain text files hold.
    """

    kind: str
    keys: tuple[str, str]
    lists: bool
    plain: Plain


@dataclass(frozen=True)
class Examples:
    """Examples on their sides of the split; `summary` is for the card and the logs."""

    train: Sequence[Example]
    held_out: Sequence[Example]
    summary: Mapping[str, Any]


def labelled(data: ClassData) -> Form:
    """Texts and their classes."""
    return Form("labelled", (data.text_key, data.label_key), False, class_a_file)


def tagged(data: TagData) -> Form:
    """Words and their tags."""
    return Form("tagged", (data.tokens_key, data.tags_key), True, conll)


def paired(data: PairData) -> Form:
    """Sources and targets."""
    return Form("pairs", (data.source_key, data.target_key), False, aligned)


def read_lines(data: TextData, evaluate_only: bool = False) -> Examples:
    """Lines of text, each expected to be itself; a record's text may have several."""
    return read_examples(data, Form("text", (data.text_key, data.text_key), False, each_line))


def read_examples(
    data: ExampleData | TextData, form: Form, evaluate_only: bool = False
) -> Examples:
    """Read what `data` names.

    Without `validation`, examples go to one side or the other by a hash of their input, so that
    equal inputs are always on the same side, in whatever file or order they come. UsageError where
    a side is left empty, BrokenFile where a file is not what its name says.
    """
    require_sense(data)
    seen: set[str] = set()
    unread = evaluate_only and data.validation  # standard input can be read once
    train = [] if unread else list(_kept(_read(data.source, form), data, seen))
    if data.validation:
        held_out = list(_kept(_read(data.validation, form), data, seen))
    else:
        limit = data.validation_fraction * 2**64
        ranked = [(_rank(example), example) for example in train]
        least = min((rank for rank, _ in ranked), default=0) if data.validation_fraction else -1
        held_out = [example for rank, example in ranked if rank < limit or rank == least]
        train = [example for rank, example in ranked if rank >= limit and rank != least]
    where = ", ".join(data.source)
    if not train and not evaluate_only:
        raise UsageError(f"There are no examples to train on in {where}; give more data.")
    if data.validation and not held_out:
        raise UsageError(
            f"{', '.join(data.validation)} holds no examples, or none that {where} lacks; give "
            "others, or set data.deduplicate=false."
        )
    digest = hashlib.sha256(json.dumps([train, held_out]).encode()).hexdigest()
    counts = {"train": len(train), "validation": len(held_out)}
    sources = {"sources": list(data.source), "validation_sources": list(data.validation)}
    return Examples(train, held_out, {**sources, "examples": counts, "content_sha256": digest})


def _kept(
    examples: Iterable[Example], data: ExampleData | TextData, seen: set[str]
) -> Iterator[Example]:
    """The examples, tidied, without the ones that lack a side or were there before."""
    for given, expected in examples:
        example = _tidied(given, data), _tidied(expected, data)
        key = json.dumps(example)
        if not all(example) or (data.deduplicate and key in seen):
            continue
        seen.add(key)
        yield example


def _tidied(value: Any, data: ExampleData | TextData) -> Any:
    if isinstance(value, str):
        text = tidy(value, data)
        return text.strip() if data.clean else text
    return [_tidied(item, data) for item in value]


def _rank(example: Example) -> int:
    """A number below 2**64 that only the input decides."""
    digest = hashlib.blake2b(json.dumps(example[0]).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


# -- reading ----------------------------------------------------------------------------------


def _read(items: Sequence[str], form: Form) -> Iterator[Example]:
    """The examples of files and data sets; those of plain text files last."""
    from cambrian.registry import load_registry

    yield from _read_from(items, form, load_registry().datasets)


def _read_from(
    items: Sequence[str], form: Form, datasets: Mapping[str, DatasetEntry]
) -> Iterator[Example]:
    plain: list[File] = []
    with tempfile.TemporaryDirectory() as spool:
        for item in items:
            if Path(item).is_dir() and form.plain is class_a_file and _folders(Path(item)):
                yield from class_a_folder(Path(item), datasets, Path(spool))
            elif form.kind != "text" and (entry := _dataset(item, datasets, form)) is not None:
                yield from _of_dataset(entry, form, datasets)
            else:
                for source in expand([item], lambda: datasets, Path(spool)):
                    if isinstance(source, Strings):
                        texts = (text for text, _ in source.chunks("", lambda position: None))
                        yield from (
                            (x, x) for text in texts for x in text.splitlines() if x.strip()
                        )
                    elif plain_text(source):
                        plain.append(source)
                    else:
                        yield from _of_file(source, form)
        yield from form.plain(plain)


def _dataset(item: str, datasets: Mapping[str, DatasetEntry], form: Form) -> DatasetEntry | None:
    entry = None if Path(item).exists() else datasets.get(item)
    if entry is not None and entry.kind != form.kind:
        raise UsageError(f"The data set '{entry.name}' holds {entry.kind}, not {form.kind}.")
    return entry


def _of_dataset(
    entry: DatasetEntry, form: Form, datasets: Mapping[str, DatasetEntry]
) -> Iterator[Example]:
    files = [item for item in entry.source if not item.startswith(PYTHON)]
    others = {name: other for name, other in datasets.items() if name != entry.name}
    yield from _read_from(files, form, others)  # without itself, so that it cannot hold itself
    for item in entry.source:
        if item in files:
            continue
        make: Any = Ref[Any](item.removeprefix(PYTHON)).load()
        for number, record in enumerate(make(), start=1):
            yield _example(record, form.keys, form, f"{entry.name}, record {number}")


def plain_text(source: Source) -> bool:
    """Whether a source is text without a form of its own."""
    return isinstance(source, File) and _ending(source) not in (".jsonl", ".ndjson", ".csv", ".tsv")


def _ending(file: File) -> str:
    return Path(file.path.lower().removesuffix(".gz")).suffix


def _of_file(file: File, form: Form) -> Iterator[Example]:
    if _ending(file) in (".csv", ".tsv"):
        yield from _of_table(file, form, "," if _ending(file) == ".csv" else "\t")
        return
    for number, line in enumerate(file.lines(), start=1):
        if not line.strip():
            continue
        where = f"{file.name}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BrokenFile(f"{where}: not a JSON record ({error}).") from error
        given, expected = _example(record, form.keys, form, where)
        if form.kind == "text":
            yield from ((x, x) for x in given.splitlines() if x.strip())
        else:
            yield given, expected


def _of_table(file: File, form: Form, delimiter: str) -> Iterator[Example]:
    """CSV or TSV; TSV has no quotes."""
    if form.lists:
        raise UsageError(
            f"{file.name}: words and their tags come as JSONL or CoNLL, not as tables."
        )
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    reader = csv.reader(file.lines(ends=True), delimiter=delimiter, quoting=quoting)
    columns = (0, 1)
    try:
        for number, row in enumerate(reader):
            if number == 0 and all(key in row for key in form.keys):
                columns = (row.index(form.keys[0]), row.index(form.keys[1]))
            elif number == 0 and any(key in row for key in form.keys):
                raise BrokenFile(
                    f"{file.name}: the header names {', '.join(row)[:200]}, but "
                    f"{' and '.join(form.keys)} are looked for; say which columns hold what by the "
                    "data's settings that end in _key."
                )
            elif len(row) > max(columns):
                yield row[columns[0]], row[columns[1]]
            elif row:
                raise BrokenFile(
                    f"{file.name}, line {reader.line_num}: {len(row)} columns, but "
                    f"{' and '.join(form.keys)} are needed."
                )
    except csv.Error as error:
        raise BrokenFile(f"{file.name}, line {reader.line_num}: {error}.") from error


def _example(record: Any, keys: tuple[str, str], form: Form, where: str) -> Example:
    """A record's two fields; BrokenFile if they are not what they should be."""
    if not isinstance(record, dict):
        raise BrokenFile(f"{where}: not a JSON object.")
    fields = cast(dict[str, Any], record)
    for key in keys:
        if fields.get(key) is None:
            raise BrokenFile(
                f"{where}: the record has no '{key}'; say which fields hold what by the data's "
                "settings that end in _key."
            )
        items: list[Any] = fields[key] if isinstance(fields[key], list) else [fields[key]]
        simple = all(isinstance(item, str | int | float) for item in items)
        if form.lists != isinstance(fields[key], list) or not simple:
            what = "a list of texts" if form.lists else "a text"
            raise BrokenFile(f"{where}: '{key}' must be {what}.")
        for item in items:
            require_characters(str(item), where)
    given, expected = (fields[key] for key in keys)
    if form.lists:
        if len(given) != len(expected):
            raise BrokenFile(f"{where}: {len(given)} words but {len(expected)} tags.")
        return [str(word) for word in given], [str(tag) for tag in expected]
    return str(given), str(expected)


# -- plain text -------------------------------------------------------------------------------


def class_a_file(files: Sequence[File]) -> Iterator[Example]:
    """Each file a class, each line a text. What the names have in common is no part of a class:
    rt-polarity.neg and rt-polarity.pos give neg and pos."""
    if len(files) == 1:
        raise UsageError(
            f"{files[0].name} alone has one class; give a file for each class, or records with "
            "labels (.jsonl, .csv, .tsv)."
        )
    names = differences([Path(f.path).name for f in files])
    if len(set(names)) == 1:
        raise UsageError(
            f"All files are called {names[0]}, so their names tell no classes; rename them by "
            "class, or give a folder with a folder for each."
        )
    for name, file in zip(names, files, strict=True):
        yield from ((line, name) for line in file.lines() if line.strip())


def differences(names: Sequence[str]) -> list[str]:
    """The names without the parts, between . _ and -, that all begin and end with."""
    parts = [re.split(r"[._-]+", name) for name in names]
    while len({part[0] for part in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [part[1:] for part in parts]
    while len({part[-1] for part in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [part[:-1] for part in parts]
    return ["-".join(part) for part in parts]


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def class_a_folder(
    folder: Path, datasets: Mapping[str, DatasetEntry], spool: Path
) -> Iterator[Example]:
    """Each folder in `folder` a class, each file below it a text."""
    for place in _folders(folder):
        for source in expand([str(place)], lambda: datasets, spool):
            yield "\n".join(cast(File, source).lines()), place.name


def each_line(files: Sequence[File]) -> Iterator[Example]:
    """Every line that is not empty."""
    for file in files:
        yield from ((line, line) for line in file.lines() if line.strip())


def conll(files: Sequence[File]) -> Iterator[Example]:
    """A word a line, its tag in the last column, an empty line between sentences."""
    for file in files:
        words: list[str] = []
        tags: list[str] = []
        for number, line in enumerate([*file.lines(), ""], start=1):
            columns = line.split("\t") if "\t" in line else line.split()
            if len(columns) == 1:
                raise BrokenFile(f"{file.name}, line {number}: a word without a tag.")
            if columns and columns[0] != "-DOCSTART-":
                words.append(columns[0])
                tags.append(columns[-1])
            elif words:
                yield words, tags
                words, tags = [], []


def aligned(files: Sequence[File]) -> Iterator[Example]:
    """Files two by two: line n of the second is what is expected of line n of the first."""
    if len(files) % 2:
        raise UsageError(
            f"{files[-1].name} has no partner: plain text is read as pairs of files, sources and "
            "then targets, line by line."
        )
    for first, second in zip(files[::2], files[1::2], strict=True):
        for given, expected in zip_longest(first.lines(), second.lines()):
            if given is None or expected is None:
                raise BrokenFile(
                    f"{first.name} and {second.name} differ in how many lines they have."
                )
            if given.strip() and expected.strip():
                yield given, expected


def require_known(expected: Iterable[str], known: Sequence[str]) -> None:
    """CambrianError if there are labels that a model does not have."""
    if strange := sorted(set(expected) - set(known)):
        raise CambrianError(
            f"The data holds the label '{strange[0]}', but the model knows only "
            f"{', '.join(known[:20])}; begin a new head (cambrian train ARCHITECTURE --base "
            "FOLDER), or leave it out."
        )
