"""Text to tokens on disk: read, clean, deduplicate, split, tokenize, keep.

Memory does not grow with the corpus, except by the names of its files.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from cambrian.data.cache import Hashes, open_or_build
from cambrian.data.config import ExampleData, TextData
from cambrian.data.corpus import ENCODING, HASHING, TRAINING, Corpus, Meter, Progress, Seen, Unit
from cambrian.data.sources import File, Source, expand
from cambrian.data.tokenizer import Specials, Tokenizer, named_tokenizer
from cambrian.data.tokenizer_training import GPT
from cambrian.data.windows import Tokens
from cambrian.errors import CambrianError, UsageError, nearest
from cambrian.files import PARTIAL, cache_folder, disk_failure, read_json, write_json
from cambrian.specs import DatasetEntry

FORMAT = 1  # of the cache; raise it when the same text and settings give other tokens
SHORT = 4 << 20  # bytes; in a corpus of more, some thousand sections, some are held out for sure
SAMPLE = 64 << 20  # characters of training text that a tokenizer is fitted to
BATCH = 1 << 20  # characters encoded at once: each token costs over 100 bytes for a moment
META, TRAIN, VALIDATION = "meta.json", "train.bin", "validation.bin"
FORMS = ("", "NFC", "NFD", "NFKC", "NFKD")


@dataclass(frozen=True)
class TextStore:
    """Prepared text: token ids, 1-d, on disk; uint16 for up to 65,536 tokens, else uint32.

    summary: what was read and kept, by split where splits differ; JSON-ready.
    """

    tokenizer: Tokenizer
    train: Tokens
    validation: Tokens | None
    summary: Mapping[str, Any]


def prepare_text(
    data: TextData,
    tokenizer: Tokenizer | None = None,
    datasets: Mapping[str, DatasetEntry] | None = None,
    progress: Progress | None = None,
    specials: Specials = GPT,
) -> TextStore:
    """Return the tokens of `data`, from the cache if the same were made before.

    Without `tokenizer` the one that `data` names is used, or one is trained that has `specials`.
    Without `validation` sources, whole
    documents go to one side or the other by a hash of their content, and long documents by
    sections of about 4 KiB, so that equal text is always on the same side. Every document's last
    token is the tokenizer's end_id, where it has one.

    Raises NotFound or UsageError for sources that are not there, settings that make no sense and
    splits without text; BrokenFile for text that is not UTF-8 or not JSONL.
    """
    require_sense(data)
    tokenizer = tokenizer or named_tokenizer(data.tokenizer)
    root = cache_folder("tokens")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_failure(error, f"the token cache {root}") from error
    with _hashed(data, datasets, root, progress) as corpus:
        key = _sha256([FORMAT, corpus.contents, _settings(data, tokenizer, specials)])
        made, hit = open_or_build(
            root / key,
            lambda folder: _load(folder, tokenizer),
            lambda folder: _build(folder, corpus, tokenizer, specials, progress),
        )
        origin = {
            "sources": list(data.source),
            "validation_sources": list(data.validation),
            "files": len(corpus.sources),
            "content_sha256": _sha256(corpus.contents),
        }
    return replace(made, summary={**origin, **made.summary, "cache_hit": hit})


def require_sense(data: TextData | ExampleData) -> None:
    """UsageError for settings that make no sense."""
    if not data.source:
        raise UsageError("data.source is empty; name files, a folder, a glob, '-' or a data set.")
    if not 0 <= data.validation_fraction < 1:
        raise UsageError(
            f"data.validation_fraction={data.validation_fraction} is no fraction; "
            "give 0 for no validation or a number below 1."
        )
    if data.normalize not in FORMS:
        raise UsageError(
            f"data.normalize='{data.normalize}' is no Unicode form."
            f"{nearest(data.normalize, FORMS)} Choose NFC, NFD, NFKC, NFKD or ''."
        )


@contextmanager
def _hashed(
    data: TextData,
    datasets: Mapping[str, DatasetEntry] | None,
    root: Path,
    progress: Progress | None,
) -> Generator[Corpus]:
    """Find the sources and what they contain; standard input is there as long as the block."""

    def names() -> Mapping[str, DatasetEntry]:
        if datasets is not None:
            return datasets
        from cambrian.registry import load_registry

        return load_registry().datasets

    with tempfile.TemporaryDirectory(prefix=f".input{PARTIAL}", dir=root) as spool:
        found = [list(expand(s, names, Path(spool))) for s in (data.source, data.validation)]
        meter = Meter(HASHING, [*found[0], *found[1]], progress)
        states = [(s, s.state()) for split in found for s in split if isinstance(s, File)]
        with closing(Hashes(root.parent / "hashes.sqlite")) as hashes:
            train, held_out = (_contents(split, hashes, meter) for split in found)
        contents = [[content for _, content in split] for split in (train, held_out)]
        yield Corpus(data, [s for s, _ in train], [s for s, _ in held_out], contents, states)


def _contents(sources: Iterable[Source], hashes: Hashes, meter: Meter) -> list[tuple[Source, str]]:
    """Each source's form and sha256, without the binary files of folders."""
    contents: list[tuple[Source, str]] = []
    for source in sources:
        if isinstance(source, File):
            digest, binary = hashes.hash(source, meter.at)
        else:
            digest, binary = source.hash(meter.at), False
        meter.next(source)
        if not (binary and isinstance(source, File) and source.found):
            contents.append((source, f"{source.form} {digest}"))
    return contents


def _settings(data: TextData, tokenizer: Tokenizer | None, specials: Specials) -> dict[str, Any]:
    """What decides over the tokens beside the text."""
    apart = ("source", "length", "tokenizer", "vocab_size")
    names = [field.name for field in fields(TextData) if field.name not in apart]
    settings: dict[str, Any] = {name: getattr(data, name) for name in names}
    settings["validation"] = bool(data.validation)
    if tokenizer is None:
        trained = {"train": data.tokenizer, "size": data.vocab_size, "sample": SAMPLE}
        return settings | trained | {"specials": asdict(specials)}
    digest = hashlib.sha256(tokenizer.raw).hexdigest()
    return settings | {"tokenizer": digest, "end": tokenizer.end_id}


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _load(folder: Path, tokenizer: Tokenizer | None) -> TextStore | None:
    """Open a folder of tokens; None if it is missing or not what its description says."""
    try:
        summary = read_json(folder / META)
        tokenizer = tokenizer or Tokenizer.load(folder)
        kind = _dtype(tokenizer)
        splits: list[Tokens] = []
        for name, file in zip(("train", "validation"), (TRAIN, VALIDATION), strict=True):
            if count := summary["tokens"].get(name):
                if (folder / file).stat().st_size != count * np.dtype(kind).itemsize:
                    return None
                splits.append(np.memmap(folder / file, kind, "r"))
        return TextStore(tokenizer, splits[0], splits[1] if len(splits) > 1 else None, summary)
    except (CambrianError, OSError, LookupError, TypeError, AttributeError):
        return None


def _dtype(tokenizer: Tokenizer) -> type[np.uint16 | np.uint32]:
    return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32


class _Output:
    """One split's tokens, and how much went in."""

    def __init__(self, path: Path, kind: type[np.uint16 | np.uint32]) -> None:
        self._file = path.open("wb")
        self._kind = kind
        self.counts = {"bytes": 0, "characters": 0, "tokens": 0}

    def add(self, text: str, ids: list[int]) -> None:
        self._file.write(np.array(ids, self._kind).tobytes())
        self.counts["bytes"] += len(text.encode("utf-8"))
        self.counts["characters"] += len(text)
        self.counts["tokens"] += len(ids)

    def close(self) -> None:
        self._file.close()


def _build(
    folder: Path,
    corpus: Corpus,
    tokenizer: Tokenizer | None,
    specials: Specials,
    progress: Progress | None,
) -> None:
    """Fill `folder` with tokens, tokenizer and description."""
    corpus = _with_held_out(corpus, folder)
    if tokenizer is None:
        with _units(corpus, folder, TRAINING, progress) as units:
            tokenizer = Tokenizer.train(
                corpus.data.tokenizer, _sample(units), corpus.data.vocab_size, specials
            )
    summary = _encode(folder, corpus, tokenizer, progress)
    for file, state in corpus.states:
        file.require(state)
    _require_text(corpus.data, summary["tokens"], summary["documents"])
    tokenizer.save(folder)
    write_json(folder / META, summary)


def _with_held_out(corpus: Corpus, folder: Path) -> Corpus:
    """See to it that a short corpus holds something out: its section of the lowest rank."""
    if corpus.held_out or sum(source.size for source in corpus.sources) > SHORT:
        return corpus
    with _units(corpus, folder, TRAINING, None) as units:
        ranks = sorted(unit.rank for unit in units if unit.new)
    return replace(corpus, least=ranks[0]) if len(ranks) > 1 else corpus


def _encode(
    folder: Path, corpus: Corpus, tokenizer: Tokenizer, progress: Progress | None
) -> dict[str, Any]:
    """Write both splits and return the summary."""
    kind = _dtype(tokenizer)
    end = [] if tokenizer.end_id is None else [tokenizer.end_id]
    documents = duplicates = 0
    with (
        _units(corpus, folder, ENCODING, progress) as units,
        closing(_Output(folder / TRAIN, kind)) as train,
        closing(_Output(folder / VALIDATION, kind)) as validation,
    ):
        for batch in _batches(units):
            rows = tokenizer.encode_batch([unit.text for unit in batch])
            for unit, ids in zip(batch, rows, strict=True):
                output = validation if unit.held_out else train
                output.add(unit.text, ids + end if unit.ends else ids)
                documents += unit.begins
                duplicates += not unit.new
    splits = {"train": train.counts, "validation": validation.counts}
    return {
        "documents": documents,
        "duplicates": duplicates,
        **{
            what: {name: counts[what] for name, counts in splits.items()}
            for what in ("bytes", "characters", "tokens")
        },
        "tokenizer": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
    }


@contextmanager
def _units(
    corpus: Corpus, folder: Path, phase: str, progress: Progress | None
) -> Generator[Iterator[Unit]]:
    """The corpus's units; the table of digests lives in `folder` as long as the block."""
    meter = Meter(phase, corpus.sources, progress)
    if not corpus.data.deduplicate:
        yield corpus.units(None, meter)
        return
    table = folder / "seen.sqlite"
    with closing(Seen(table)) as seen:
        yield corpus.units(seen, meter)
    table.unlink()


def _sample(units: Iterable[Unit]) -> Iterator[str]:
    """The training text that comes first, SAMPLE characters of it."""
    size = 0
    for unit in units:
        if not unit.held_out:
            yield unit.text
            size += len(unit.text)
        if size >= SAMPLE:
            return


def _batches(units: Iterable[Unit]) -> Iterator[list[Unit]]:
    batch: list[Unit] = []
    size = 0
    for unit in units:
        batch.append(unit)
        size += len(unit.text) + 64  # an empty unit takes memory, too
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    yield batch


def _require_text(data: TextData, tokens: Mapping[str, int], documents: int) -> None:
    where = ", ".join(data.source)
    if not documents:
        raise UsageError(f"There is no text in {where}; name files that hold some.")
    if not tokens["train"]:
        raise UsageError(
            f"All text of {where} ({documents} documents) fell to validation; give more text or "
            f"lower data.validation_fraction={data.validation_fraction}."
        )
    if data.validation and not tokens["validation"]:
        raise UsageError(
            f"{', '.join(data.validation)} holds no text, or none that {where} lacks; give other "
            "text, or set data.deduplicate=false."
        )
    if data.validation_fraction and not tokens["validation"]:
        raise UsageError(
            f"{where} is too short to hold a part of it out; give more text, give "
            "data.validation, or set data.validation_fraction=0 to do without."
        )
