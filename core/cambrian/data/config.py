"""Settings of data, one frozen dataclass a kind; torch-free and numpy-free."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TextData:
    """Where text comes from and how it becomes tokens.

    source: files, folders, globs, "-" for standard input, or one named data set.
    validation: held-out text, given like `source`; empty to split `validation_fraction` off.
    tokenizer: "bpe" (byte-level, trained on the text), "char", or a path to a tokenizer.json or
        to a folder with tokenizer.json or vocab.json and merges.txt.
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
