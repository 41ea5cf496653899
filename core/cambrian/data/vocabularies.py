"""Vocabularies in the files of other tools, as the text of a tokenizer.json.

vocab.txt (BERT's WordPiece), vocab.json with merges.txt (GPT-2 and RoBERTa), spiece.model (T5's
SentencePiece), bpe.codes with vocab.txt (BERTweet).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from cambrian.data.tokenizer_guard import refusing, require_charsmap, require_dense
from cambrian.errors import BrokenFile
from cambrian.files import read_json

VOCAB_JSON, MERGES = "vocab.json", "merges.txt"
VOCAB_TXT, CODES, SPIECE = "vocab.txt", "bpe.codes", "spiece.model"
LIMIT = 64 << 20  # bytes; the largest tokenizer.json in use has about 40 MB


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer.json, made of other files.

    settings: what the files imply of tokenizer_config.json. originals: files to be kept byte for
    byte instead of a tokenizer.json, which cannot express them; ids from `size` on then mean the
    unknown token.
    """

    raw: bytes
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    originals: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    size: int | None = None


def read_foreign(folder: Path, settings: Mapping[str, Any]) -> Vocabulary | None:
    """The vocabulary of a folder without tokenizer.json, or None; BrokenFile if it is malformed."""
    readers: Mapping[tuple[str, ...], Callable[[Path, Mapping[str, Any]], Vocabulary]] = {
        (CODES, VOCAB_TXT): bertweet,
        (VOCAB_JSON, MERGES): byte_level,
        (SPIECE,): sentencepiece,
        (VOCAB_TXT,): wordpiece,
    }
    for names, reader in readers.items():
        if all((folder / name).is_file() for name in names):
            with refusing(f"{folder} has a malformed {' or '.join(names)}"):
                return reader(folder, settings)
    return None


def read_limited(file: Path) -> bytes:
    """A file's bytes; BrokenFile if it is too large for what it should be, or unreadable."""
    try:
        if (size := file.stat().st_size) > LIMIT:
            raise BrokenFile(f"{file} has {size} bytes; no tokenizer is larger than {LIMIT}.")
        return file.read_bytes()
    except OSError as error:
        raise BrokenFile(f"Cannot read {file}: {error.strerror}.") from error


def _lines(file: Path) -> list[str]:
    return read_limited(file).decode("utf-8").removesuffix("\n").split("\n")


def _raw(backend: tokenizers.Tokenizer) -> bytes:
    return backend.to_str(pretty=True).encode()


def special(text: str, **traits: bool) -> AddedToken:
    """A special token, found in text as it stands."""
    return AddedToken(text, special=True, normalized=False, **traits)


# -- byte-level BPE ---------------------------------------------------------------------------


def byte_level(folder: Path, settings: Mapping[str, Any]) -> Vocabulary:
    """GPT-2's vocab.json and merges.txt, or RoBERTa's, which has <s> and <mask> in it."""
    vocabulary = read_json(folder / VOCAB_JSON)
    require_dense(vocabulary.values(), str(folder / VOCAB_JSON))
    lines = _lines(folder / MERGES)
    lines = [line for line in lines[lines[0].startswith("#version") :] if line]
    merges = [(left, right) for left, right in (line.split(" ") for line in lines)]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    roberta = [t for t in ("<s>", "<pad>", "</s>", "<unk>") if t in vocabulary]
    if "<mask>" in vocabulary and len(roberta) == 4:
        # The mask takes the place of a word and of the space before it.
        backend.add_special_tokens([*map(special, roberta), special("<mask>", lstrip=True)])
        backend.post_processor = processors.RobertaProcessing(
            ("</s>", vocabulary["</s>"]), ("<s>", vocabulary["<s>"]), add_prefix_space=False
        )
    elif "<|endoftext|>" in vocabulary:
        backend.add_special_tokens([special("<|endoftext|>")])
    return Vocabulary(_raw(backend))


# -- WordPiece --------------------------------------------------------------------------------

BERT_ROLES = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def wordpiece(folder: Path, settings: Mapping[str, Any]) -> Vocabulary:
    """BERT's vocab.txt: a token a line, its number the id. Lower-cased unless the settings'
    do_lower_case says otherwise (the reference's default)."""
    tokens = [line.rstrip("\r") for line in _lines(folder / VOCAB_TXT)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise BrokenFile(f"{folder / VOCAB_TXT} holds a token twice.")
    if missing := [token for token in BERT_ROLES.values() if token not in vocabulary]:
        raise BrokenFile(f"{folder / VOCAB_TXT} lacks {missing[0]}, so it is not BERT's.")
    strip = settings.get("strip_accents")
    normalizer = normalizers.BertNormalizer(
        lowercase=bool(settings.get("do_lower_case", True)),
        strip_accents=None if strip is None else bool(strip),
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
    )
    return Vocabulary(_raw(wordpiece_backend(vocabulary, normalizer)), BERT_ROLES)


def wordpiece_backend(
    vocabulary: dict[str, int],
    normalizer: normalizers.BertNormalizer,
    roles: Mapping[str, str] = BERT_ROLES,
) -> tokenizers.Tokenizer:
    """BERT's tokenizer (Devlin et al. 2019): split at blanks and punctuation, then WordPiece.

    Texts are wrapped as BERT does where the roles have a cls_token and a sep_token.
    """
    unknown = roles["unk_token"]
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([special(token) for token in roles.values()])
    start, end = (roles.get(role) for role in ("cls_token", "sep_token"))
    if start is not None and end is not None:
        backend.post_processor = processors.BertProcessing(
            (end, vocabulary[end]), (start, vocabulary[start])
        )
    return backend


# -- SentencePiece ----------------------------------------------------------------------------

UNKNOWN_PIECE, CONTROL_PIECE = 2, 3  # of ModelProto.SentencePiece.Type
UNIGRAM = 1  # of TrainerSpec.ModelType
SENTINELS = 100  # <extra_id_0> to <extra_id_99>, which T5 has behind the pieces
MOST_SENTINELS = 1000


def sentencepiece(folder: Path, settings: Mapping[str, Any]) -> Vocabulary:
    """T5's spiece.model: a Unigram model (Kudo 2018) with the normaliser compiled into it.

    Ids are sentencepiece's, but for one thing that every tokenizer.json of a T5 shares: the
    `tokenizers` library looks up clusters of 6 bytes or more character by character, so that
    half-width kana with a voicing mark, or Hangul spelt in jamo, are not composed. BrokenFile for
    models that treat blanks otherwise than T5's.
    """
    file = folder / SPIECE
    model = _messages(read_limited(file), file)
    trainer = _messages(_bytes(model, 2), file)
    normalizer = _messages(_bytes(model, 3), file)
    if _integer(trainer, 3, UNIGRAM) != UNIGRAM:
        raise BrokenFile(
            f"{file} is a SentencePiece model of another kind than Unigram; convert it to a "
            "tokenizer.json with the tool that made it."
        )
    if not all(_integer(normalizer, number, 1) for number in (3, 4, 5)):
        raise BrokenFile(
            f"{file} does without add_dummy_prefix, remove_extra_whitespaces or "
            "escape_whitespaces, which T5's models all have; convert it to a tokenizer.json with "
            "the tool that made it."
        )
    pieces = [_messages(piece, file) for piece in model.get(1, []) if isinstance(piece, bytes)]
    names = [_bytes(piece, 1).decode("utf-8") for piece in pieces]
    kinds = [_integer(piece, 3, 1) for piece in pieces]
    if UNKNOWN_PIECE not in kinds:
        raise BrokenFile(f"{file} has no piece for what is unknown.")
    backend = tokenizers.Tokenizer(
        models.Unigram(
            list(zip(names, map(_score, pieces), strict=True)),
            unk_id=kinds.index(UNKNOWN_PIECE),
            byte_fallback=bool(_integer(trainer, 35, 0)),
        )
    )
    blanks = [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    charsmap = _bytes(normalizer, 2)
    steps: list[Any] = []
    if charsmap:
        require_charsmap(charsmap)
        steps.append(normalizers.Precompiled(charsmap))
    backend.normalizer = normalizers.Sequence([*steps, *blanks])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    own = [name for name, kind in zip(names, kinds, strict=True) if kind in (2, 3)]
    count = settings.get("extra_ids", SENTINELS)
    if not isinstance(count, int) or not 0 <= count <= MOST_SENTINELS:
        raise BrokenFile(
            f"{folder / 'tokenizer_config.json'}: extra_ids must be a number up to "
            f"{MOST_SENTINELS}, not {str(count)[:40]!r}."
        )
    backend.add_special_tokens([special(name) for name in own])
    backend.add_special_tokens([special(f"<extra_id_{i}>") for i in reversed(range(count))])
    if "</s>" in names:
        backend.post_processor = processors.TemplateProcessing(
            single="$A </s>",
            pair="$A </s> $B </s>",
            special_tokens=[("</s>", names.index("</s>"))],
        )
    return Vocabulary(_raw(backend))


Message = dict[int, list[int | bytes]]  # a field's number to its values


def _messages(data: bytes, file: Path) -> Message:
    """A protobuf message, one level of it; BrokenFile if it ends too early."""
    found: Message = {}
    try:
        for number, value in _wire(data):
            found.setdefault(number, []).append(value)
    except (IndexError, struct.error, ValueError) as error:
        raise BrokenFile(f"{file} is no SentencePiece model ({error or 'it is cut short'}).") from (
            error
        )
    return found


def _wire(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message in protobuf's wire format."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    while at < len(data):
        key = varint()
        number, kind = key >> 3, key & 7
        if kind == 0:
            yield number, varint()
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"wire type {kind}")
        size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        if at + size > len(data):
            raise ValueError("it is cut short")
        yield number, data[at : at + size]
        at += size


def _bytes(message: Message, number: int) -> bytes:
    value = message.get(number, [b""])[-1]
    return value if isinstance(value, bytes) else b""


def _integer(message: Message, number: int, default: int) -> int:
    value = message.get(number, [default])[-1]
    return value if isinstance(value, int) else default


def _score(piece: Message) -> float:
    return float(struct.unpack("<f", _bytes(piece, 2))[0]) if 2 in piece else 0.0


# -- BERTweet ---------------------------------------------------------------------------------

BERTWEET_ROLES = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "mask_token": "<mask>",
}
END_OF_WORD = "</w>"  # of a merge; a token of vocab.txt says "@@" where the word goes on


def bertweet(folder: Path, settings: Mapping[str, Any]) -> Vocabulary:
    """BERTweet's bpe.codes ("left right count" a line) and vocab.txt ("token count" a line).

    Merges whose result is in no vocabulary still happen, and what they give is unknown: such
    results get ids behind the vocabulary, which the Tokenizer turns into <unk>. Emoji and user
    names are taken as they stand, which is the reference's default too.
    """
    heads = list(dict.fromkeys(BERTWEET_ROLES.values()))[:4]
    tokens = [line.rpartition(" ")[0] or line for line in _lines(folder / VOCAB_TXT)]
    known = list(dict.fromkeys([*heads, *tokens, BERTWEET_ROLES["mask_token"]]))
    vocabulary: dict[str, int] = {}
    for number, token in enumerate(known):
        goes_on = token.removesuffix("@@")
        name = goes_on if goes_on != token else token + END_OF_WORD
        vocabulary[token if token in BERTWEET_ROLES.values() else name] = number
    merges: list[tuple[str, str]] = []
    for line in _lines(folder / CODES):
        left, right, *_ = line.split()
        merges.append((left, right))
        for part in (left, right, left + right):
            vocabulary.setdefault(part, len(vocabulary))
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token="<unk>", end_of_word_suffix=END_OF_WORD
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\S+\n?"), "removed", invert=True)
    backend.decoder = decoders.BPEDecoder(suffix=END_OF_WORD)
    mask = BERTWEET_ROLES["mask_token"]
    backend.add_special_tokens([special(token) for token in [*heads, mask]])
    originals = {name: read_limited(folder / name) for name in (CODES, VOCAB_TXT)}
    return Vocabulary(_raw(backend), BERTWEET_ROLES, originals, len(known))
