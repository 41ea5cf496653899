"""Other tools' vocabularies, held to those tools: sentencepiece and transformers."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

from cambrian.data.tokenizer import KINDS, Specials, Tokenizer
from cambrian.data.tokenizer_training import GPT
from cambrian.data.vocabularies import BERTWEET_ROLES
from cambrian.errors import BrokenFile, CambrianError, UsageError
from cambrian_bert.data import BERT, ROBERTA
from cambrian_t5.data import SPECIALS as T5

TEXTS = [
    "The quick brown fox jumps over the lazy dog, doesn't it?",
    "Größe und Übermut: naïve Fußgänger fürchten 12,5 % Zinsen…",
    "ﬁne  Ⅷ ＡＢＣ １２３ ½ e\u0301 \u00a0x\u200b",
    "ｶﾀｶﾅ ㍿ 日本語 テスト",
    "мир труд май — «ура»",
    "😀 smile 👩‍👩‍👧 family",
    " leading, trailing \t\n",
    "",
    " ",
]


def noise(count: int, seed: int = 0, marks: bool = True) -> list[str]:
    """Strings over ranges where normalisation does something, perhaps with combining marks."""
    rng = random.Random(seed)
    ranges = [(32, 126), (0xA0, 0x24F), (0x2000, 0x20CF), (0x2100, 0x22FF), (0x3000, 0x3029),
              (0x3030, 0x3098), (0x309B, 0x30FF), (0xFF00, 0xFF9D), (0x1F300, 0x1F3FA)]  # fmt: skip
    ranges += [(0x300, 0x36F)] if marks else []
    return [
        "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randint(1, 40)))
        for _ in range(count)
    ]


# -- WordPiece --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wordpiece", "wordpiece-uncased"])
def test_trained_wordpiece_is_berts(kind: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(kind, TEXTS * 5, 400, BERT)
    assert (tokenizer.kind, tokenizer.vocab_size <= 400) == ("wordpiece", True)
    roles = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id)
    assert (*roles, tokenizer.mask_id) == (0, 1, 2, 3, 4)
    assert (tokenizer.eos_id, tokenizer.end_id) == (None, 3)
    vocabulary = [tokenizer.token(i) for i in range(tokenizer.vocab_size)]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    theirs = transformers.BertTokenizer(
        str(tmp_path / "vocab.txt"), do_lower_case=kind.endswith("uncased")
    )
    for text in [*TEXTS, *noise(200)]:
        assert tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False), text


def test_wordpiece_training_is_the_same_in_every_process() -> None:
    code = (
        "import sys, hashlib; from cambrian.data.tokenizer import Specials, Tokenizer; "
        "from cambrian.data.vocabularies import BERT_ROLES; "
        "t = Tokenizer.train('wordpiece', sys.stdin.read().splitlines(True), 300, "
        "Specials(roles=BERT_ROLES)); print(hashlib.sha256(t.raw).hexdigest())"
    )
    rng = random.Random(0)  # words of equal counts, so that ties must be broken alike
    text = "\n".join(
        " ".join(rng.choices(["ab", "cd", "ba", "dc", "xyz", "zyx"], k=9)) for _ in range(200)
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            input=text,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads},
        ).stdout
        for seed, threads in [("1", "1"), ("2", "2"), ("3", "2")]
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_lower_case": True},
        {"do_lower_case": False},
        {"strip_accents": False},
        {"strip_accents": True, "do_lower_case": False},
        {"tokenize_chinese_chars": False},
    ],
)
def test_vocab_txt_gives_the_reference_ids(settings: dict[str, Any], tmp_path: Path) -> None:
    trained = Tokenizer.train("wordpiece", TEXTS * 5, 500, BERT)
    vocabulary = [trained.token(i) for i in range(trained.vocab_size)]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = Tokenizer.load(tmp_path)
    given = {"do_lower_case": True, **settings}
    theirs = transformers.BertTokenizer(str(tmp_path / "vocab.txt"), **given)
    for text in [*TEXTS, *noise(200, seed=1)]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
    ours.save(tmp_path / "saved")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again("a fox")["input_ids"] == theirs("a fox")["input_ids"]
    assert (again.mask_token_id, again.pad_token_id) == (ours.mask_id, ours.pad_id)
    pair = again("a fox", "a dog")
    assert pair["token_type_ids"] == theirs("a fox", "a dog")["token_type_ids"]
    assert 1 in pair["token_type_ids"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("specials", [GPT, BERT, ROBERTA, T5])
def test_every_kind_is_trained_for_every_family(
    kind: str, specials: Specials, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.train(kind, TEXTS * 5, 900, specials)
    ids = tokenizer.encode("a fox")
    assert ids and max(ids) < tokenizer.vocab_size
    typed = specials is BERT
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ("token_type_ids" in theirs("a fox")) == typed
    assert theirs("a fox", add_special_tokens=False)["input_ids"] == ids


def test_a_saved_tokenizer_leaves_no_other_behind(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(b"")
    (tmp_path / "bpe.codes").write_text("a b 1\n")
    (tmp_path / "vocab.txt").write_text("ab 1\n")
    Tokenizer.load(tmp_path)
    Tokenizer.train("char", ["abc"], 10).save(tmp_path / "run")
    Tokenizer.load(tmp_path).save(tmp_path / "run")
    assert not (tmp_path / "run" / "tokenizer.json").exists()
    assert Tokenizer.load(tmp_path / "run").kind == "bpe"


def test_markup_is_read_where_it_is_asked_for() -> None:
    tokenizer = Tokenizer.train("wordpiece", TEXTS * 5, 400, BERT)
    plain, read = (tokenizer.encode("the [MASK] fox", markup=m) for m in (False, True))
    assert tokenizer.mask_id not in plain
    assert read.count(tokenizer.mask_id) == 1
    assert tokenizer.encode("the [MASK] fox") == plain  # the switch is put back


def test_pieces_that_begin_a_word() -> None:
    tokenizer = Tokenizer.train("wordpiece", TEXTS * 5, 400, BERT)
    ids = tokenizer.encode("the fearsome foxes")
    words = tokenizer.begins_word[ids]
    assert words.sum() == 3 and words[0]
    byte_level = Tokenizer.train("bpe", TEXTS, 300)
    ids = byte_level.encode(" the fox")
    assert list(byte_level.begins_word[ids]).count(True) == 2


@pytest.mark.parametrize("tokens", [["[PAD]", "[UNK]", "a"], ["[PAD]"] * 2, [""]])
def test_a_vocab_txt_that_is_not_berts(tokens: list[str], tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    with pytest.raises(BrokenFile, match=r"vocab\.txt"):
        Tokenizer.load(tmp_path)


def test_too_few_tokens_for_the_alphabet() -> None:
    with pytest.raises(UsageError, match="each character twice"):
        Tokenizer.train("wordpiece", TEXTS, 50, BERT)


# -- byte-level BPE of RoBERTa ----------------------------------------------------------------


def test_robertas_files(tmp_path: Path) -> None:
    roles = Specials(roles=BERTWEET_ROLES, single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>")
    trained = Tokenizer.train("bpe", TEXTS, 400, roles)
    model = json.loads(trained.raw)["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    merges = [" ".join(pair) for pair in model["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    ours = Tokenizer.load(tmp_path)
    mask = transformers.AddedToken("<mask>", lstrip=True)  # as in roberta-base's tokenizer.json
    theirs = transformers.RobertaTokenizer.from_pretrained(tmp_path, mask_token=mask)
    ids = (ours.cls_id, ours.pad_id, ours.sep_id, ours.unk_id, ours.mask_id)
    assert ids == (0, 1, 2, 3, 4)
    for text in [*TEXTS, *noise(200)]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    filled = "The quick <mask> fox"
    assert ours.encode(filled, markup=True) == theirs.encode(filled, add_special_tokens=False)


# -- SentencePiece ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a spiece.model as T5's: pad 0, eos 1, unk 2, nmt_nfkc."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("pieces")
    words = [f"{a}{b}" for a in ("stein", "wasser", "größ", "мор", "日本") for b in "aeiou"]
    rng = random.Random(0)
    lines = [" ".join(rng.choices(words, k=8)) for _ in range(400)]
    (folder / "text.txt").write_text("\n".join([*lines, *TEXTS * 3]), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "spiece"),
        vocab_size=220,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        model_type="unigram",
        minloglevel=2,
    )
    return folder


def test_spiece_model_gives_the_ids_of_sentencepiece(pieces: Path, tmp_path: Path) -> None:
    import sentencepiece

    (tmp_path / "spiece.model").write_bytes((pieces / "spiece.model").read_bytes())
    ours = Tokenizer.load(tmp_path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    score, tied = theirs.get_score, 0
    for text in [*TEXTS, *noise(1000, marks=False), *(f"a{chr(c)}b" for c in range(1, 0xD800))]:
        found, want = ours.encode(text), theirs.encode(text)
        assert "".join(map(ours.token, found)) == "".join(map(theirs.id_to_piece, want)), text
        if found != want:  # two ways to cut that are equally likely
            tied += 1
            assert sum(map(score, found)) == pytest.approx(sum(map(score, want)), abs=1e-4), text
    assert tied < 60
    assert (ours.pad_id, ours.eos_id, ours.unk_id, ours.cls_id) == (0, 1, 2, None)
    assert ours.vocab_size == theirs.get_piece_size() + 100
    assert ours.id("<extra_id_0>") == ours.vocab_size - 1
    assert ours.decode(ours.encode("stein wasser")) == "stein wasser"
    ours.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").encode(TEXTS[1]) == ours.encode(TEXTS[1])


def test_a_damaged_spiece_model_is_one_sentence(pieces: Path, tmp_path: Path) -> None:
    raw, rng = (pieces / "spiece.model").read_bytes(), random.Random(0)
    file = tmp_path / "spiece.model"
    for content in (raw[: len(raw) // 2], b"\x0a\xff", b"<html>", b"\x80" * 20):
        file.write_bytes(content)
        with pytest.raises(BrokenFile, match=r"spiece\.model"):
            Tokenizer.load(tmp_path)
    for _ in range(100):
        damaged = bytearray(raw)
        for _ in range(3):
            damaged[rng.randrange(len(raw))] = rng.randrange(256)
        file.write_bytes(bytes(damaged))
        with contextlib.suppress(CambrianError):
            Tokenizer.load(tmp_path).encode("stein wasser")


@pytest.mark.parametrize(
    ("extra_ids", "told"), [(2_000_000_000, "up to 1000"), ("x", "must be a number"), (-1, "-1")]
)
def test_sentinels_that_cannot_be(extra_ids: Any, told: str, pieces: Path, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes((pieces / "spiece.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": extra_ids}))
    with pytest.raises(BrokenFile, match=f"tokenizer_config.json: extra_ids .*{told}"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("flag", ["add_dummy_prefix", "remove_extra_whitespaces"])
def test_blanks_treated_otherwise_are_refused(flag: str, tmp_path: Path) -> None:
    import sentencepiece

    with (tmp_path / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["ein stein im wasser"] * 20),
            model_writer=file,
            vocab_size=20,
            hard_vocab_limit=False,
            minloglevel=2,
            **{flag: False},
        )
    with pytest.raises(BrokenFile, match=f"does without .*{flag}"):
        Tokenizer.load(tmp_path)


# -- BERTweet ---------------------------------------------------------------------------------


def test_bertweets_files_give_the_reference_ids(tmp_path: Path) -> None:
    """Merges as fastBPE writes them; the vocabulary lacks some of what they can give."""
    merges = ["t h", "th e</w>", "f o", "fo x</w>", "l o", "lo l</w>", "r u", "ru n", "run s</w>"]
    counted = [f"{merge} {90 - i}" for i, merge in enumerate(merges)]
    (tmp_path / "bpe.codes").write_text("\n".join(counted) + "\n")
    letters = list("abcdefghijklmnopqrstuvwxyz@_:!")
    tokens = ["the", "fox", "th@@", "ru@@", "runs", *letters, *(f"{c}@@" for c in letters[:-1])]
    (tmp_path / "vocab.txt").write_text("".join(f"{t} {9}\n" for t in tokens))
    ours = Tokenizer.load(tmp_path)
    theirs = transformers.BertweetTokenizer(
        str(tmp_path / "vocab.txt"), str(tmp_path / "bpe.codes")
    )
    rng = random.Random(0)
    texts = ["the fox runs lol", "@user the: run !", "THE é fox", "a\nb", "  ", "lol lolx run"]
    texts += ["".join(rng.choices("theforunslx !\n", k=20)) for _ in range(300)]
    for text in texts:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
    assert ours.unk_id in ours.encode("lol")  # merged, though the vocabulary lacks it
    ids = (ours.cls_id, ours.pad_id, ours.sep_id, ours.unk_id, ours.mask_id)
    assert ids == (0, 1, 2, 3, theirs.mask_token_id)
    assert ours.vocab_size == len(theirs)
    assert ours.decode(ours.encode("the fox runs")) == "the fox runs"
    ours.save(tmp_path / "saved")
    for name in ("bpe.codes", "vocab.txt"):
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert not (tmp_path / "saved" / "tokenizer.json").exists()
