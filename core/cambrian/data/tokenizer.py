"""Text to token ids and back, in the files that the Hugging Face Hub knows.

Special tokens are only ever ids that a program adds: text that spells one out ("<|endoftext|>",
"[SEP]") is encoded like any other text, so nobody's corpus can forge the end of a document. Where
a person may write them, as "[MASK]" in a sentence to be filled, the caller says so (`markup`).
(transformers by default reads the literal as the id; everything else encodes alike.)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import tokenizers
from numpy.typing import NDArray

from cambrian.data import Processor
from cambrian.data.tokenizer_guard import outline, refusing, require_dense
from cambrian.data.tokenizer_training import CONTINUES, END, GPT, UNKNOWN, Specials, fit
from cambrian.data.vocabularies import (
    CODES,
    MERGES,
    SPIECE,
    VOCAB_JSON,
    VOCAB_TXT,
    Vocabulary,
    read_foreign,
    read_limited,
)
from cambrian.errors import BrokenFile, CambrianError, NotFound, nearest
from cambrian.files import read_json, write_bytes, write_json

__all__ = ["END", "KINDS", "UNKNOWN", "Specials", "Tokenizer", "fitted", "named_tokenizer"]

KINDS = ("bpe", "wordpiece", "wordpiece-uncased", "char")
FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
# What plays a role where tokenizer_config.json does not say it.
CANDIDATES: Mapping[str, tuple[str, ...]] = {
    "bos_token": ("<s>", END),
    "eos_token": (END, "<|end_of_text|>", "</s>", "<eos>"),
    "unk_token": ("[UNK]", "<unk>", UNKNOWN, END),
    "sep_token": ("[SEP]", "</s>"),
    "pad_token": ("<|pad|>", "<pad>", "[PAD]"),
    "cls_token": ("[CLS]", "<s>"),
    "mask_token": ("[MASK]", "<mask>"),
}
KEPT = (*CANDIDATES, "model_max_length", "chat_template", "extra_ids", "model_input_names")

# Encoding in threads makes the library warn at every later fork, unless this variable is set;
# a forked child lacks those threads and would wait for them forever.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        after_in_child=lambda: os.environ.__setitem__("TOKENIZERS_PARALLELISM", "false")
    )


class Tokenizer(Processor):
    """A tokenizer of the `tokenizers` library.

    `bos_id`, `eos_id`, `unk_id`, `sep_id`, `cls_id` and `mask_id` are None if the vocabulary has
    no such token; `pad_id` fills rows up; `end_id` ends a document.
    vocab_size is the number of embeddings needed: the highest id plus one.
    """

    def __init__(
        self,
        raw: bytes,
        settings: Mapping[str, Any],
        origin: str,
        foreign: Vocabulary | None = None,
    ) -> None:
        """`raw` is a tokenizer.json, `settings` the tokenizer_config.json beside it."""
        with refusing(f"{origin} is not a tokenizer that can be read"):
            outline(raw)
            backend = _backend(raw, markup=False)
            vocabulary = backend.get_vocab(with_added_tokens=True)
            self.kind = _kind(backend, raw)
        if not vocabulary:
            raise BrokenFile(f"{origin} has an empty vocabulary.")
        self.raw = raw
        self._originals = foreign.originals if foreign is not None else {}
        self._size = foreign.size if foreign is not None else None
        self.vocab_size = self._size or max(vocabulary.values()) + 1
        require_dense(vocabulary.values(), origin)
        self._backend = backend
        self._settings = {key: settings[key] for key in KEPT if settings.get(key) is not None}
        self._roles = {role: self._id(role) for role in CANDIDATES}
        self.bos_id, self.eos_id = self._roles["bos_token"], self._roles["eos_token"]
        self.cls_id, self.sep_id = self._roles["cls_token"], self._roles["sep_token"]
        self.unk_id, self.mask_id = self._roles["unk_token"], self._roles["mask_token"]
        self.end_id = self.eos_id if self.eos_id is not None else self.sep_id
        pad = self._roles["pad_token"]
        self.pad_id = pad if pad is not None else (self.end_id or 0)
        self._characters = {c: i for c, i in vocabulary.items() if len(c) == 1}

    @classmethod
    def train(
        cls, kind: str, texts: Iterable[str], vocab_size: int, specials: Specials = GPT
    ) -> Self:
        """Fit a vocabulary (of one of KINDS) to `texts`; the same texts, the same bytes."""
        raw = fit(kind, texts, vocab_size, specials).to_str(pretty=True).encode()
        roles = dict(specials.roles)
        if kind == "char":
            roles["unk_token"] = UNKNOWN
        return cls(raw, roles, f"The trained {kind} tokenizer")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a folder with tokenizer.json or a vocabulary in another tool's files, or such a
        tokenizer.json itself.

        NotFound if there is none, BrokenFile if it is malformed.
        """
        file, folder = (folder, folder.parent) if folder.is_file() else (folder / FILE, folder)
        config = folder / CONFIG
        settings = read_json(config) if config.is_file() else {}
        if file.is_file():
            return cls(read_limited(file), settings, str(file))
        if (found := read_foreign(folder, settings)) is not None:
            return cls(found.raw, {**found.settings, **settings}, str(folder), found)
        raise NotFound(
            f"{folder} has no tokenizer: neither {FILE} nor vocab.json with merges.txt, vocab.txt, "
            "or spiece.model."
        )

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, byte for byte as it was read, and tokenizer_config.json.

        A vocabulary that no tokenizer.json can express is kept in its own files.
        """
        kind = "BertweetTokenizer" if self._originals else "PreTrainedTokenizerFast"
        config: dict[str, Any] = {"tokenizer_class": kind, "clean_up_tokenization_spaces": False}
        if not self._originals:
            config["model_input_names"] = _inputs(self.raw)
        config |= {r: self.token(i) for r, i in self._roles.items() if i is not None}
        written = self._originals or {FILE: self.raw}
        for name in {FILE, VOCAB_JSON, MERGES, VOCAB_TXT, CODES, SPIECE} - written.keys():
            (folder / name).unlink(missing_ok=True)  # an earlier tokenizer's, which would be read
        for name, data in written.items():
            write_bytes(folder / name, data)
        write_json(folder / CONFIG, config | self._settings)

    def encode(self, text: str, markup: bool = False) -> list[int]:
        """The ids of one text, with no token added before or after."""
        return self.encode_batch([text], markup)[0]

    def encode_batch(self, texts: Sequence[str], markup: bool = False) -> list[list[int]]:
        """The ids of each text; CambrianError if the tokenizer cannot encode one of them.

        With `markup`, special tokens that a text spells out are those tokens.
        """
        if self.kind == "char" and not markup:  # the library takes ten times as long
            get, unknown = self._characters.get, self._characters[UNKNOWN]
            return [[get(c, unknown) for c in text] for text in texts]
        backend = self._markup_backend if markup else self._backend
        with refusing("The tokenizer cannot encode this text", CambrianError):
            rows = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        if self._size is None or self.unk_id is None:
            return [row.ids for row in rows]
        return [[i if i < self._size else self.unk_id for i in row.ids] for row in rows]

    @cached_property
    def _markup_backend(self) -> tokenizers.Tokenizer:
        """One that reads special tokens in text: a flag of the library's object, and threads may
        share this one."""
        return _backend(self.raw, markup=True)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens; bytes that form no character give U+FFFD."""
        with refusing("The tokenizer cannot decode these tokens", CambrianError):
            return self._backend.decode(list(ids), skip_special_tokens=True)

    def token(self, number: int) -> str:
        """The token of an id as the vocabulary spells it; "" if there is none."""
        return self._backend.id_to_token(number) or ""

    def id(self, token: str) -> int | None:
        """The id of a token, or None."""
        return self._backend.token_to_id(token)

    @cached_property
    def begins_word(self) -> NDArray[np.bool_]:
        """Which ids begin a word, (vocab_size,); in byte-level BPE and Unigram those that carry
        the space before it."""
        tokens = [self.token(i) for i in range(self.vocab_size)]
        if self.kind == "wordpiece":
            return np.array([not token.startswith(CONTINUES) for token in tokens])
        if self.kind in ("bpe", "unigram") and not self._originals:
            return np.array([token.startswith(("Ġ", "▁")) for token in tokens])
        if self._originals:
            raise CambrianError("BERTweet's vocabulary marks ends of words, not beginnings.")
        return np.ones(self.vocab_size, np.bool_)

    def _id(self, role: str) -> int | None:
        value = self._settings.get(role)
        name = value.get("content") if isinstance(value, dict) else value
        for token in [name] if isinstance(name, str) else CANDIDATES[role]:
            if (number := self._backend.token_to_id(token)) is not None:
                return number
        return None


def named_tokenizer(name: str) -> Tokenizer | None:
    """The tokenizer at a path, or None for a kind that is to be trained; NotFound for neither."""
    if name in KINDS:
        return None
    if not Path(name).exists():
        raise NotFound(
            f"data.tokenizer='{name}' is neither {', '.join(KINDS)} nor a path that exists."
            f"{nearest(name, KINDS)}"
        )
    return Tokenizer.load(Path(name))


def fitted(name: str, vocab_size: int, texts: Iterable[str], specials: Specials) -> Tokenizer:
    """The tokenizer that `name` says: read from a path, or trained on `texts`."""
    return named_tokenizer(name) or Tokenizer.train(name, texts, vocab_size, specials)


def _backend(raw: bytes, markup: bool) -> tokenizers.Tokenizer:
    """The library's tokenizer, which encodes texts whole and as they are."""
    backend = tokenizers.Tokenizer.from_buffer(raw)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = not markup
    return backend


def _inputs(raw: bytes) -> list[str]:
    """The inputs that tokenized pairs need: token_type_ids where the second text has its own."""
    after = outline(raw).post_processor or {}
    pair = [next(iter(part.values())) for part in after.get("pair", ())]
    typed = after.get("type") == "BertProcessing" or any(part.get("type_id") for part in pair)
    return ["input_ids", *(["token_type_ids"] if typed else []), "attention_mask"]


def _kind(backend: tokenizers.Tokenizer, raw: bytes) -> str:
    """The model's name; "char" where looking up each character is all that happens."""
    name = type(backend.model).__name__.lower()
    if name != "wordlevel" or backend.normalizer is not None:
        return name
    found = json.loads(raw)
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}}
    split |= {"behavior": "Isolated", "invert": False}
    added = {token["content"] for token in found.get("added_tokens", ())}
    single = all(len(token) == 1 for token in found["model"]["vocab"] if token not in added)
    alike = found.get("pre_tokenizer") == split and found["model"]["unk_token"] == UNKNOWN
    return "char" if alike and single and UNKNOWN in found["model"]["vocab"] else name
