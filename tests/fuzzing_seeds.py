"""Good files of every kind that comes from elsewhere, and what reads each as the verbs do."""

from __future__ import annotations

import functools
import io
import json
import pickle
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cambrian.specs import ModelSpec
from torch_streams import rebuilt, stream

Files = dict[str, bytes]
TEXT = "The quick brown fox, née Größe 日本 😀 [MASK] 12,5 %\n" + "a" * 40


class Kind(NamedTuple):
    """seeds: folders of good files. read: reads such a folder. whole: files that stay as they
    are."""

    seeds: Callable[[], list[Files]]
    read: Callable[[Path], object]
    whole: tuple[str, ...] = ()


# -- registry, lock, records --------------------------------------------------------------------


GOLDEN = b"""[models.proved]
architecture = "gpt"
weights = "hf://a/b"
golden = {source = "x", inputs.decoder.input_ids = [1, 2], ids = [7, 3], values = [2.5, 1.0]}
"""


def registries() -> list[Files]:
    from cambrian.registry import shipped_file

    tables = shipped_file().read_bytes().split(b"\n\n")
    parts = (tables[:8], [GOLDEN, *tables[-8:]])
    return [{"registry.toml": b"\n\n".join(part)} for part in parts]


def read_registry(folder: Path) -> None:
    from cambrian.registry_file import read_registry_file

    read_registry_file(folder / "registry.toml", "test")


def locks() -> list[Files]:
    from cambrian.hub import Lock, Pin
    from cambrian.hub.lock import PinnedFile

    files = {"config.json": PinnedFile(3, "a" * 64), "model.safetensors": PinnedFile(9, "b" * 64)}
    pins = {"a": Pin("b/c", "1" * 40, files, "mit", "v1"), "hf://d/e": Pin("d/e", "2" * 40, files)}
    return [{"cambrian.lock": Lock(pins).text().encode()}]


def read_lock(folder: Path) -> None:
    """What is read is written so that it reads the same."""
    from cambrian.hub import Lock

    lock = Lock.read(folder / "cambrian.lock")
    lock.write(folder / "again.lock")
    assert Lock.read(folder / "again.lock") == lock


def manifests() -> list[Files]:
    port = {"name": "ids", "dtype": "int64", "shape": ["batch", "past + 2*n", 3]}
    signature = {"inputs": [port], "outputs": [port], "state": {"ids": "b"}}
    manifest = {
        "format": "onnx",
        "architecture": "gpt",
        "task": "text-generation",
        "precision": "float32",
        "graphs": {"model": {"file": "model.onnx", "signature": signature}},
        "files": {"model.onnx": "a" * 64},
        "receipt": {"tolerance": 1e-4},
        "cambrian": "0.1.0",
    }
    return [{"manifest.json": json.dumps(manifest).encode()}]


def read_manifest(folder: Path) -> None:
    from cambrian.artifact import Artifact, resolve_shape

    for graph in Artifact.open(folder).manifest.graphs.values():
        for port in graph.signature.inputs:
            resolve_shape(port.shape, {"batch": 2})


# -- a model's description and weights ----------------------------------------------------------

SMALL = {"num_hidden_layers": 2, "n_layer": 2, "num_layers": 2, "vocab_size": 300}


def small(spec: ModelSpec) -> Any:
    """The architecture's default config with few layers."""
    import msgspec

    given = msgspec.to_builtins(spec.config())
    return spec.config(**{**given, **{k: v for k, v in SMALL.items() if k in given}})


def configs() -> list[Files]:
    from cambrian import load_registry
    from cambrian.checkpoint import describe

    seeds: list[Files] = []
    for spec in load_registry().models.values():
        described = describe(spec, small(spec), "0")
        if spec.model_class is not None and len(seeds) % 2:  # as another tool makes it
            del described["cambrian"]
        seeds.append({"config.json": json.dumps(described).encode()})
    return seeds


def read_config(folder: Path) -> None:
    """As `Checkpoint.open` and, but for the weights, `Checkpoint.model` do."""
    from cambrian import load_registry
    from cambrian.checkpoint import Checkpoint, require_match

    opened = Checkpoint.open(folder, load_registry().models.values())
    require_match(opened.spec, opened.config, outlines(opened.spec.name), folder)


@functools.cache
def outlines(name: str) -> dict[str, Any]:
    """The tensors of an unharmed model, without numbers."""
    import torch

    from cambrian import load_registry

    spec = load_registry().models[name]
    config = small(spec)
    with torch.device("meta"):
        tensors = dict(spec.model.load()(config).state_dict())
    return tensors if spec.weights is None else spec.weights.load().save(tensors, config)


INDEX = {
    "metadata": {"total_size": 8},
    "weight_map": {
        "a.weight": "model-00001-of-00002.safetensors",
        "b.weight": "model-00002-of-00002.safetensors",
    },
}


def indices() -> list[Files]:
    return [{"model.safetensors.index.json": json.dumps(INDEX).encode()}]


def read_index(folder: Path) -> None:
    from cambrian.checkpoint import read_index

    read_index(folder / "model.safetensors.index.json")


def weights() -> list[Files]:
    from cambrian.weight_files import TensorInfo, encode_header

    infos = {
        "a.weight": TensorInfo("F32", (2, 3), (0, 24)),
        "b": TensorInfo("I64", (), (24, 32)),
        "empty": TensorInfo("F16", (0, 4), (32, 32)),
    }
    return [{"model.safetensors": encode_header(infos, {"format": "pt"}) + bytes(32)}]


def read_weights(folder: Path) -> None:
    from cambrian.weight_files import header

    header(folder / "model.safetensors")


def torch_weights() -> list[Files]:
    program = b"\x80\x02}(U\x01a" + rebuilt() + b"U\x01n" + pickle.dumps(5, 2)[2:-1] + b"u."
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", bytes(24))
        archive.writestr("archive/version", "3\n")
    return [{"pytorch_model.bin": data} for data in (stream(program), zipped.getvalue())]


def read_torch_weights(folder: Path) -> None:
    from cambrian.torch_files import converted
    from cambrian.weight_files import header

    file = converted(folder / "pytorch_model.bin")
    header(file)
    file.unlink()


# -- tokenizers ---------------------------------------------------------------------------------


def trained() -> list[Files]:
    """tokenizer.json and the settings beside it, of each kind of model."""
    from tokenizers import SentencePieceUnigramTokenizer

    from cambrian.data.tokenizer import KINDS, Specials, Tokenizer
    from cambrian.data.vocabularies import BERT_ROLES

    seeds: list[Files] = []
    for kind in KINDS:
        roles = BERT_ROLES if kind.startswith("wordpiece") else {"eos_token": "<|endoftext|>"}
        size = 270 if kind == "bpe" else 100
        raw = Tokenizer.train(kind, [TEXT] * 3, size, Specials(roles=roles)).raw
        settings: dict[str, Any] = {
            "tokenizer_class": "x",
            "model_max_length": 12,
            "extra_ids": 3,
            **roles,
        }
        settings["unk_token"] = {"content": settings.get("unk_token", "a"), "lstrip": False}
        beside = json.dumps(settings).encode()
        seeds.append({"tokenizer.json": raw, "tokenizer_config.json": beside})
    unigram = SentencePieceUnigramTokenizer()
    unigram.train_from_iterator([TEXT] * 3, vocab_size=60, unk_token="<unk>", show_progress=False)
    seeds.append({"tokenizer.json": unigram.to_str().encode(), "tokenizer_config.json": b"{}"})
    return seeds


def byte_level() -> list[Files]:
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    merges = ["t h", "th e", "Ġ q", "q u"]
    tokens = [*alphabet, *(merge.replace(" ", "") for merge in merges)]
    seeds: list[Files] = []
    for specials in (["<|endoftext|>"], ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]):
        ids = {token: number for number, token in enumerate([*tokens, *specials])}
        lines = "\n".join(["#version: 0.2", *merges]) + "\n"
        seeds.append({"vocab.json": json.dumps(ids).encode(), "merges.txt": lines.encode()})
    return seeds


def wordpieces() -> list[Files]:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"thequickbrwnfx", "##he", "the", ","]
    text = "\n".join(dict.fromkeys(tokens)) + "\n"
    settings = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
    return [{"vocab.txt": text.encode(), "tokenizer_config.json": json.dumps(settings).encode()}]


def train(model: io.BytesIO, rules: str) -> None:
    """A SentencePiece model, with the rules of normalisation of a file."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ein stein im wasser"] * 20),
        model_writer=model,
        vocab_size=20,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        normalization_rule_tsv=rules,
        minloglevel=2,
    )


def sentencepieces() -> list[Files]:
    """spiece.model without rules of normalisation, and with a few."""
    seeds: list[Files] = []
    for rules in ("", "41\t61\n2126\t3A9\nFB01\t66 69\n1F600\t3A 29\n"):
        model = io.BytesIO()
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(rules)
            file.flush()
            train(model, file.name if rules else "")
        seeds.append(
            {"spiece.model": model.getvalue(), "tokenizer_config.json": b'{"extra_ids":3}'}
        )
    return seeds


def bertweets() -> list[Files]:
    codes = b"t h 9\nth e</w> 8\nf o 7\nfo x</w> 6\n"
    return [{"bpe.codes": codes, "vocab.txt": b"the 9\nfox 8\nth@@ 7\na@@ 6\n"}]


def read_tokenizer(folder: Path) -> None:
    """Load, use, save; what was saved loads."""
    from cambrian.data.tokenizer import Tokenizer
    from cambrian.errors import CambrianError

    tokenizer = Tokenizer.load(folder)
    for markup in (False, True):
        tokenizer.decode(tokenizer.encode(TEXT, markup))
    try:
        tokenizer.begins_word  # noqa: B018
    except CambrianError as error:
        assert "BERTweet" in str(error)
    saved = folder / "saved"
    tokenizer.save(saved)
    Tokenizer.load(saved)


def field(number: int, value: int | bytes) -> bytes:
    """A field of a protobuf message: bytes with their length, or a number."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if len(value) == 4 and number == 2:  # a score, the one float that is read
        return varint(number << 3 | 5) + value
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    """A number in pieces of 7 bits."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


KINDS: dict[str, Kind] = {
    "registry.toml": Kind(registries, read_registry),
    "cambrian.lock": Kind(locks, read_lock),
    "manifest.json": Kind(manifests, read_manifest),
    "config.json": Kind(configs, read_config),
    "model.safetensors.index.json": Kind(indices, read_index),
    "model.safetensors": Kind(weights, read_weights),
    "pytorch_model.bin": Kind(torch_weights, read_torch_weights),
    "tokenizer.json": Kind(trained, read_tokenizer),
    "vocab.json": Kind(byte_level, read_tokenizer),
    "vocab.txt": Kind(wordpieces, read_tokenizer),
    "spiece.model": Kind(sentencepieces, read_tokenizer),
    "bpe.codes": Kind(bertweets, read_tokenizer),
}
