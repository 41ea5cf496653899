"""Text to token ids and back, in the files that the Hugging Face Hub knows.

`<|endoftext|>` ends a document. It is only ever an id that a program adds: text that spells it
out is encoded like any other text, here and in prompts, so nobody's corpus can forge the end of a
document. (transformers by default reads the literal as the id; everything else encodes alike.)
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from cambrian.data import Processor
from cambrian.errors import BrokenFile, CambrianError, NotFound, UsageError
from cambrian.files import read_json, write_bytes, write_json

Kind: TypeAlias = Literal["bpe", "char"]
END = "<|endoftext|>"
UNKNOWN = "\ufffd"  # Unicode's replacement character; what an unseen character decodes to
FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
VOCAB, MERGES = "vocab.json", "merges.txt"
LIMIT = 256 << 20  # bytes; the largest tokenizer.json in use has about 40 MB
ENDS = (END, "<|end_of_text|>", "</s>", "<eos>")
KEPT = ("bos_token", "eos_token", "unk_token", "pad_token", "model_max_length", "chat_template")

# Encoding in threads makes the library warn at every later fork, unless this variable is set;
# a forked child lacks those threads and would wait for them forever.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        after_in_child=lambda: os.environ.__setitem__("TOKENIZERS_PARALLELISM", "false")
    )


class Tokenizer(Processor):
    """A tokenizer of the `tokenizers` library.

    eos_id ends a document, None if the vocabulary has no such token; pad_id fills rows up.
    vocab_size is the number of embeddings needed: the highest id plus one.
    """

    def __init__(self, raw: bytes, settings: dict[str, Any], origin: str) -> None:
        """`raw` is a tokenizer.json, `settings` the tokenizer_config.json beside it."""
        try:
            backend = tokenizers.Tokenizer.from_buffer(raw)
        except Exception as error:  # the library raises nothing narrower
            raise BrokenFile(f"{origin} is not a tokenizer that can be read ({error}).") from error
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        vocabulary = backend.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise BrokenFile(f"{origin} has an empty vocabulary.")
        self.raw = raw
        self.vocab_size = max(vocabulary.values()) + 1
        if self.vocab_size > 2 * len(vocabulary) + 1024:
            raise BrokenFile(
                f"{origin} gives {len(vocabulary)} tokens ids as high as {self.vocab_size - 1}; "
                "a model for it would consist of unused embeddings."
            )
        self._backend = backend
        self._settings = {key: settings[key] for key in KEPT if settings.get(key) is not None}
        self.kind = _kind(backend, raw)
        self.eos_id = self._id("eos_token", ENDS)
        pad = self._id("pad_token", ("<|pad|>", "<pad>", "[PAD]"))
        self.pad_id = pad if pad is not None else (self.eos_id or 0)
        self._characters = {c: i for c, i in vocabulary.items() if len(c) == 1}

    @classmethod
    def train(cls, kind: Kind, texts: Iterable[str], vocab_size: int) -> Self:
        """Fit a vocabulary of at most `vocab_size` to `texts`; the same texts, the same bytes.

        "bpe": byte-level byte-pair encoding as in GPT-2 (Radford et al. 2019; Sennrich et al.
        2016) without an added leading space. "char": the most frequent characters of `texts`.
        """
        backend = {"bpe": _train_bpe, "char": _train_char}[kind](texts, vocab_size)
        return cls(backend.to_str(pretty=True).encode(), {}, f"The trained {kind} tokenizer")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a folder with tokenizer.json, or GPT-2's vocab.json and merges.txt, or such a file.

        NotFound if there is neither, BrokenFile if they are malformed.
        """
        file, folder = (folder, folder.parent) if folder.is_file() else (folder / FILE, folder)
        config = folder / CONFIG
        settings = read_json(config) if config.is_file() else {}
        if file.is_file():
            return cls(_read(file), settings, str(file))
        if (folder / VOCAB).is_file() and (folder / MERGES).is_file():
            return cls(_gpt2_files(folder), settings, str(folder / VOCAB))
        raise NotFound(f"{folder} has no tokenizer: neither {FILE} nor {VOCAB} with {MERGES}.")

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, byte for byte as it was read, and tokenizer_config.json."""
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        config["clean_up_tokenization_spaces"] = False
        if self.eos_id is not None:
            end = self._backend.id_to_token(self.eos_id)
            unknown = UNKNOWN if self.kind == "char" else end
            config |= {"bos_token": end, "eos_token": end, "unk_token": unknown}
        write_bytes(folder / FILE, self.raw)
        write_json(folder / CONFIG, config | self._settings)

    def encode(self, text: str) -> list[int]:
        """The ids of one text, with no token added before or after."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text; CambrianError if the tokenizer cannot encode one of them."""
        if self.kind == "char":  # the library takes ten times as long for the same ids
            get, unknown = self._characters.get, self._characters[UNKNOWN]
            return [[get(c, unknown) for c in text] for text in texts]
        try:
            rows = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises nothing narrower
            raise CambrianError(f"The tokenizer cannot encode this text: {error}.") from error
        return [row.ids for row in rows]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens; bytes that form no character give U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def _id(self, setting: str, candidates: Sequence[str]) -> int | None:
        value = self._settings.get(setting)
        name = value.get("content") if isinstance(value, dict) else value
        for token in [name] if isinstance(name, str) else candidates:
            if (number := self._backend.token_to_id(token)) is not None:
                return number
        return None


def _train_bpe(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + 1:
        raise UsageError(
            f"vocab_size={vocab_size} is too small for byte-level BPE, which needs "
            f"{len(alphabet) + 1}: one token a byte and {END}; raise data.vocab_size."
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _train_char(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    if vocab_size < 3:
        raise UsageError(f"vocab_size={vocab_size} leaves no room for characters; raise it.")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    counts.pop(UNKNOWN, None)
    ranked = sorted(counts, key=lambda c: (-counts[c], c))
    kept = sorted(islice(ranked, vocab_size - 2))
    vocabulary = {token: i for i, token in enumerate([END, UNKNOWN, *kept])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return backend


def _kind(backend: tokenizers.Tokenizer, raw: bytes) -> str:
    """The model's name; "char" where looking up each character is all that happens."""
    name = type(backend.model).__name__.lower()
    if name != "wordlevel" or backend.normalizer is not None:
        return name
    found = json.loads(raw)
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}}
    split |= {"behavior": "Isolated", "invert": False}
    added = {token["content"] for token in found["added_tokens"]}
    single = all(len(token) == 1 for token in found["model"]["vocab"] if token not in added)
    alike = found["pre_tokenizer"] == split and found["model"]["unk_token"] == UNKNOWN
    return "char" if alike and single and UNKNOWN in found["model"]["vocab"] else name


def _read(file: Path) -> bytes:
    try:
        if (size := file.stat().st_size) > LIMIT:
            raise BrokenFile(f"{file} has {size} bytes; no tokenizer is larger than {LIMIT}.")
        return file.read_bytes()
    except OSError as error:
        raise BrokenFile(f"Cannot read {file}: {error.strerror}.") from error


def _gpt2_files(folder: Path) -> bytes:
    """Build a tokenizer.json from GPT-2's vocab.json and merges.txt."""
    vocabulary = read_json(folder / VOCAB, LIMIT)
    try:
        lines = _read(folder / MERGES).decode("utf-8").split("\n")
        lines = [line for line in lines[lines[0].startswith("#version") :] if line]
        merges = [(left, right) for left, right in (line.split(" ") for line in lines)]
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as error:  # the library raises nothing narrower
        raise BrokenFile(f"{folder} has a malformed {VOCAB} or {MERGES} ({error}).") from error
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if END in vocabulary:
        backend.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return backend.to_str(pretty=True).encode()
