"""Vocabularies fitted to text: byte-level BPE, WordPiece, characters. Same text, same bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from cambrian.data.vocabularies import special, wordpiece_backend
from cambrian.errors import UsageError

END = "<|endoftext|>"
UNKNOWN = "\ufffd"  # Unicode's replacement character; what an unseen character decodes to
ALPHABET = 1000  # characters that WordPiece keeps; rarer ones make their word unknown
CONTINUES = "##"  # what WordPiece writes before a piece that does not begin a word


@dataclass(frozen=True, kw_only=True)
class Specials:
    """The special tokens of a vocabulary.

    roles: what is which, as in tokenizer_config.json ("pad_token", "eos_token", ...), in the order
        of their ids, which begin at 0; one token may have several roles.
    last: tokens with the highest ids, as T5's sentinels.
    single, pair: how texts are wrapped, in the form of tokenizers' TemplateProcessing; for other
        tools, our own data code places its tokens itself.
    """

    roles: Mapping[str, str] = field(default_factory=dict[str, str])
    last: tuple[str, ...] = ()
    single: str = ""
    pair: str = ""

    @property
    def first(self) -> list[str]:
        """Each token with a role once."""
        return list(dict.fromkeys(self.roles.values()))


GPT = Specials(roles={"bos_token": END, "eos_token": END, "unk_token": END})


def fit(
    kind: str, texts: Iterable[str], vocab_size: int, specials: Specials
) -> tokenizers.Tokenizer:
    """Fit a vocabulary of at most `vocab_size` to `texts`.

    "bpe": byte-level byte-pair encoding as in GPT-2 (Radford et al. 2019; Sennrich et al. 2016)
    without an added leading space. "wordpiece" and "wordpiece-uncased": BERT's (Devlin et al.
    2019). "char": the most frequent characters of `texts`.
    """
    room = vocab_size - len(specials.last)
    if kind == "bpe":
        backend = _bpe(texts, room, specials)
    elif kind == "char":
        backend = _char(texts, room, specials)
    else:
        backend = _wordpiece(texts, room, specials, lowercase=kind.endswith("uncased"))
    backend.add_special_tokens([special(token) for token in specials.last])
    if specials.single:
        named = [token for token in specials.first if token in specials.single + specials.pair]
        backend.post_processor = processors.TemplateProcessing(
            single=specials.single,
            pair=specials.pair,
            special_tokens=[(token, backend.token_to_id(token)) for token in named],
        )
    return backend


def _bpe(texts: Iterable[str], vocab_size: int, specials: Specials) -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < (least := len(alphabet) + len(specials.first)):
        own = least + len(specials.last)
        raise UsageError(
            f"vocab_size={vocab_size + len(specials.last)} is too small for byte-level BPE, which "
            f"needs {own}: one token a byte and the special ones; raise data.vocab_size."
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials.first,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _char(texts: Iterable[str], vocab_size: int, specials: Specials) -> tokenizers.Tokenizer:
    if vocab_size < len(specials.first) + 2:
        raise UsageError(
            f"vocab_size={vocab_size + len(specials.last)} leaves no room for characters; raise "
            "data.vocab_size."
        )
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    heads = [*specials.first, UNKNOWN]
    for head in heads:
        counts.pop(head, None)
    ranked = sorted(counts, key=lambda c: (-counts[c], c))
    kept = sorted(islice(ranked, vocab_size - len(heads)))
    vocabulary = {token: i for i, token in enumerate([*heads, *kept])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([special(token) for token in specials.first])
    return backend


def _wordpiece(
    texts: Iterable[str], vocab_size: int, specials: Specials, lowercase: bool
) -> tokenizers.Tokenizer:
    """The library's own WordPiece trainer numbers the pieces "##a" in the order of a hash table.

    It is BPE underneath (with words' first pieces bare and later ones prefixed), so that is what
    is trained here, with every single-character piece given a number before.
    """
    texts = list(texts)
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update("".join(normalizer.normalize_str(text).split()))
    alphabet = sorted(sorted(counts, key=lambda c: (-counts[c], c))[:ALPHABET])
    heads = [*specials.first, *(CONTINUES + c for c in alphabet)]
    if vocab_size < len(heads) + len(alphabet):
        last = len(specials.last)
        raise UsageError(
            f"vocab_size={vocab_size + last} is too small for WordPiece, which needs "
            f"{len(heads) + len(alphabet) + last} for this text: each character twice and the "
            "special tokens; raise data.vocab_size."
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=heads,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=CONTINUES,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return wordpiece_backend(backend.get_vocab(), normalizer, specials.roles)
