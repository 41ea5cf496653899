"""Settings of data, one frozen dataclass a kind; torch-free and numpy-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TextData:
    """Where text comes from and how it becomes tokens.

    source: files, folders, globs, "-" for standard input, or one named data set.
    validation: held-out text, given like `source`; empty to split `validation_fraction` off.
    tokenizer: what to train on the text - "bpe" (byte-level), "wordpiece", "wordpiece-uncased" or
        "char" - or a path to a tokenizer.json or to a folder with one or with another tool's
        vocabulary (vocab.json and merges.txt, vocab.txt, spiece.model).
    length: tokens in a row of a batch; 0 for as many as the model can read.
    text_key: the field that holds the text in JSONL records.
    normalize: a Unicode form ("NFC", "NFKC"), or "" to leave the text alone.
    clean: drop control characters, unify line ends, strip trailing blanks.
    deduplicate: keep the first of documents that are equal after cleaning.
    """

    source: tuple[str, ...] = ("python-reference",)
    validation: tuple[str, ...] = ()
    validation_fraction: float = 0.05
    tokenizer: str = "bpe"
    vocab_size: int = 4096
    length: int = 0
    text_key: str = "text"
    normalize: str = "NFC"
    clean: bool = True
    deduplicate: bool = True


@dataclass(frozen=True, kw_only=True)
class MaskedData(TextData):
    """Text for masked language modelling (Devlin et al. 2019).

    validation_fraction: as large as the examples', so that, with rows="lines", both hold out the
        same lines.
    rows: "packed" fills every row from the stream of documents, across their ends; "lines" makes
        each line of text a row of its own.
    mask_fraction: how many of a row's tokens are to be predicted; of these `mask_token_fraction`
        become the mask token, `random_token_fraction` another token, and the rest stay.
    whole_words: choose words, not tokens; a word that is more than what is to be predicted of its
        row is passed over, and a row of such words is masked by tokens.
    """

    validation_fraction: float = 0.1
    tokenizer: str = "wordpiece-uncased"
    rows: Literal["packed", "lines"] = "packed"
    mask_fraction: float = 0.15
    mask_token_fraction: float = 0.8
    random_token_fraction: float = 0.1
    whole_words: bool = False


@dataclass(frozen=True, kw_only=True)
class ExampleData:
    """Examples, each an input with what is expected of it.

    source, validation: files, folders, globs or one named data set: JSONL, or CSV and TSV with the
        keys below as header, or without one in their order; .gz of these; plain text as the kind
        of data says. Without `validation` a `validation_fraction` is split off by content.
    tokenizer, vocab_size: as for text; fitted to the training examples.
    length: tokens in a row at most, longer ones are cut; 0 for as many as the model can read.
    normalize, clean, deduplicate: as for text; equal examples are kept once.
    """

    source: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    validation_fraction: float = 0.1
    tokenizer: str = "bpe"
    vocab_size: int = 4096
    length: int = 0
    normalize: str = "NFC"
    clean: bool = True
    deduplicate: bool = True


@dataclass(frozen=True, kw_only=True)
class ClassData(ExampleData):
    """Texts and their classes.

    Plain text: each file a class named by what differs in the files' names, each line a text; or
    a folder of folders, each of them a class and each file in it a text.
    text_key, label_key: the fields of a record.
    """

    source: tuple[str, ...] = ("python-topics",)
    tokenizer: str = "wordpiece-uncased"
    text_key: str = "text"
    label_key: str = "label"


@dataclass(frozen=True, kw_only=True)
class TagData(ExampleData):
    """Words and their tags.

    Plain text: CoNLL's form, a word a line, its tag in the last column, an empty line between
    sentences.
    tokens_key, tags_key: the fields of a record, each a list.
    """

    source: tuple[str, ...] = ("python-tokens",)
    tokenizer: str = "bpe"
    tokens_key: str = "tokens"
    tags_key: str = "tags"


@dataclass(frozen=True, kw_only=True)
class PairData(ExampleData):
    """Pairs of texts.

    Plain text files are taken two by two: one of sources, then one of targets, line by line.
    source_key, target_key: the fields of a record.
    """

    source: tuple[str, ...] = ("python-dates",)
    source_key: str = "source"
    target_key: str = "target"


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """Pictures, with labels or without; all of them are held in memory, a byte a value.

    source, validation: IDX files (as MNIST comes, plain or .gz), picture files, folders of them
        (a folder a class), .npz, .npy, .parquet with image bytes, or one named data set. Without
        `validation` a `validation_fraction` is split off by content, so that equal pictures are
        on one side.
    crop: "center" cuts the largest square out of a picture's middle before it is resized to what
        the model sees; "none" squeezes the whole picture.
    flip: mirror half of the training pictures. shift: move each by up to so many pixels, either
        way, filling up with its edge.
    binarize: "threshold" makes a value 1 if it is above a half of the range, "sample" makes it 1
        with its own probability, drawn anew each time (Salakhutdinov and Murray 2008); for models
        of black and white.
    extractor: a classifier's folder (see `cambrian list cnn`), or the file of Inception's weights,
        over whose features generated pictures are compared with held-out ones; "" for none.
    """

    source: tuple[str, ...] = ("printed-digits",)
    validation: tuple[str, ...] = ()
    validation_fraction: float = 0.1
    crop: Literal["center", "none"] = "center"
    flip: bool = False
    shift: int = 0
    binarize: Literal["no", "threshold", "sample"] = "no"
    extractor: str = ""
