"""The model's folder: recognised, loaded strictly, written reproducibly."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cambrian.checkpoint import (
    Checkpoint,
    describe,
    read_config,
    recognise,
    save_weights,
    shards,
)
from cambrian.errors import BrokenFile, NotFound
from cambrian.files import sha256, write_json
from cambrian.registry import load_registry
from cambrian.runs import remove_run
from cambrian.specs import ModelSpec
from cambrian_gpt.config import GPTConfig
from cambrian_gpt.model import GPT
from cambrian_gpt.weights import GPTWeights

WEIGHTS = "model.safetensors"
SMALL = GPTConfig(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    spec = load_registry().models["gpt"]
    write_json(tmp_path / "config.json", describe(spec, SMALL, "0.1.0"))
    save_weights(tmp_path, spec, SMALL, GPT(SMALL))
    return tmp_path


def opened(folder: Path) -> Checkpoint:
    return Checkpoint.open(folder, load_registry().models.values())


def rewrite(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    description = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in description.items() if v is not None}))


def test_round_trip_is_bit_equal(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = GPT(SMALL)
    model = opened(folder).model()
    assert not model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, original.state_dict()[name])
    before = sha256(folder / WEIGHTS)
    save_weights(folder, load_registry().models["gpt"], SMALL, model)
    assert sha256(folder / WEIGHTS) == before


def test_same_weights_same_bytes_in_another_process(folder: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path;"
        "sys.path.insert(0, sys.argv[2]);"
        "from test_checkpoint import SMALL, GPT, save_weights, load_registry;"
        "torch.manual_seed(0);"
        "save_weights(Path(sys.argv[1]), load_registry().models['gpt'], SMALL, GPT(SMALL))"
    )
    other = folder / "other"
    other.mkdir()
    here = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", code, str(other), here], check=True)
    assert sha256(other / WEIGHTS) == sha256(folder / WEIGHTS)


def test_opening_reads_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert opened(folder).config == SMALL


def test_global_generator_is_left_alone(folder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    opened(folder).model()
    assert torch.equal(torch.rand(1), expected)


def test_folders_from_elsewhere_are_recognised(folder: Path) -> None:
    rewrite(folder, cambrian=None)
    assert opened(folder).spec.name == "gpt"
    rewrite(folder, architectures=None)
    assert opened(folder).spec.name == "gpt"  # by model_type
    for strange in (5, "NotGPT2LMHeadModelAtAll", {"a": 1}):
        rewrite(folder, architectures=strange, model_type="gpt2")
        assert opened(folder).spec.name == "gpt"  # by model_type alone
    rewrite(folder, model_type="mamba")
    with pytest.raises(NotFound, match="model_type 'mamba', which no plugin provides"):
        opened(folder)
    rewrite(folder, model_type="\n" * 1_000_000)
    with pytest.raises(NotFound, match="which no plugin provides") as caught:
        opened(folder)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)
    rewrite(folder, cambrian={"architecture": "\n" * 1_000_000})
    with pytest.raises(NotFound, match="which no plugin provides") as caught:
        opened(folder)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


def test_own_mark_of_a_missing_plugin_is_named() -> None:
    with pytest.raises(NotFound, match=r"architecture 'gtp', which no plugin provides\..*'gpt'"):
        recognise(
            {"cambrian": {"architecture": "gtp"}},
            load_registry().models.values(),
            Path("config.json"),
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": "two"}, "does not describe a gpt model"),
        ({"n_head": 3}, "does not describe a gpt model"),
        (
            {"n_embd": 16},
            r"another shape than the config makes: '\S+' \(24,\) for \(48,\), .* and 26 more",
        ),
        ({"n_positions": 1 << 62}, "describes no model that can be"),
        ({"n_positions": 1 << 40}, "describes a model of .* but its weights hold"),
    ],
)
def test_wrong_config_is_one_sentence(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    rewrite(folder, **changes)
    with pytest.raises(BrokenFile, match=message) as caught:
        opened(folder).model()
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_one_sentence(folder: Path) -> None:
    file = folder / WEIGHTS
    whole = file.read_bytes()
    for content in (whole[:-10], b"", b"\xff" * 64, whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(BrokenFile, match="not a readable safetensors file"):
            opened(folder).model()
    file.unlink()
    with pytest.raises(NotFound, match="holds no weights"):
        opened(folder).model()


def test_missing_and_unknown_tensors(folder: Path) -> None:
    file = folder / WEIGHTS
    tensors = load_file(file)
    save_file({k: v for k, v in tensors.items() if "ln_f.bias" not in k}, file)
    with pytest.raises(BrokenFile, match=r"ln_f\.bias"):
        opened(folder).model()
    strange = {f"surprise{i}": torch.zeros(1) for i in range(5)}
    save_file(tensors | strange, file)
    with pytest.raises(BrokenFile, match=r"holds \S+e0, \S+e1, \S+e2 and 2 more, which"):
        opened(folder).model()
    quantised = {k: v.to(torch.int8) if "c_fc" in k else v for k, v in tensors.items()}
    save_file(quantised, file)
    with pytest.raises(BrokenFile, match=r"\(int8\), '\S+' \(int8\) and 1 more where real num"):
        opened(folder).model()
    save_file({k: v.half() for k, v in tensors.items()}, file)
    assert next(opened(folder).model().parameters()).dtype == torch.float32


def test_wrong_weights_are_known_by_their_header(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and shapes are compared before a number is read or a module takes memory."""

    def refuse(*_: object) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr("safetensors.torch.load_file", refuse)
    with pytest.raises(AssertionError, match="were read"):
        opened(folder).model()
    for changes in ({"n_embd": 16}, {"n_layer": 3}, {"n_layer": 1}):
        rewrite(folder, **{"n_embd": 8, "n_layer": 2, **changes})
        with pytest.raises(BrokenFile, match=r"shape|lacks|holds"):
            opened(folder).model()


def test_a_family_may_need_the_numbers_to_name_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Particular(GPTWeights):
        def load(self, tensors: Any, config: GPTConfig) -> dict[str, torch.Tensor]:
            assert all(tensor.isfinite().all().item() for tensor in tensors.values())
            return super().load(tensors, config)

    monkeypatch.setattr("cambrian_gpt.weights.WEIGHTS", Particular())
    assert opened(folder).model().state_dict()
    rewrite(folder, n_embd=16)
    with pytest.raises(BrokenFile, match="another shape"):
        opened(folder).model()


def as_torch(folder: Path, zipped: bool = True, name: str = "pytorch_model.bin") -> Path:
    """Leave the weights as torch.save writes them."""
    file = folder / name
    torch.save(load_file(folder / WEIGHTS), file, _use_new_zipfile_serialization=zipped)
    (folder / WEIGHTS).unlink()
    return file


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_that_torch_wrote(folder: Path, zipped: bool) -> None:
    whole = opened(folder).model().state_dict()
    file = as_torch(folder, zipped)
    assert opened(folder).weights_sha256() == sha256(file)
    for _ in range(2):
        for name, tensor in opened(folder).model().state_dict().items():
            assert torch.equal(tensor, whole[name])
    assert {path.name for path in folder.iterdir()} == {"config.json", file.name}
    save_weights(folder, load_registry().models["gpt"], SMALL, GPT(SMALL))
    assert opened(folder).weights_sha256() == sha256(folder / WEIGHTS)  # it comes first


def hash_of_hashes(folder: Path, *names: str) -> str:
    """What `sha256sum NAMES | sha256sum` prints."""
    lines = [f"{sha256(folder / name)}  {name}\n" for name in sorted(names)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_a_shard_that_changes_changes_the_hash(folder: Path) -> None:
    names = set(split(folder).values())
    before = opened(folder).weights_sha256()
    for name in names:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert opened(folder).weights_sha256() != before
        (folder / name).write_bytes(content)
    assert opened(folder).weights_sha256() == before


def test_shards_that_torch_wrote(folder: Path) -> None:
    whole = opened(folder).model().state_dict()
    table = split(folder)
    index = folder / "pytorch_model.bin.index.json"
    for name in set(table.values()):
        torch.save(load_file(folder / name), folder / name.replace(".safetensors", ".bin"))
        (folder / name).unlink()
    (folder / "model.safetensors.index.json").unlink()
    names = {tensor: name.replace(".safetensors", ".bin") for tensor, name in table.items()}
    write_json(index, {"weight_map": names})
    assert opened(folder).weights_sha256() == hash_of_hashes(folder, *set(names.values()))
    for name, tensor in opened(folder).model().state_dict().items():
        assert torch.equal(tensor, whole[name])
    first = min(names.values())
    write_json(index, {"weight_map": {**names, "more": first}})
    with pytest.raises(BrokenFile, match=f"{first} lacks 'more'"):
        opened(folder).model()
    write_json(index, {"weight_map": dict.fromkeys(names, "config.json")})
    with pytest.raises(BrokenFile, match=r"'config\.json', which is no \.bin file"):
        opened(folder).model()


def test_a_bert_of_google_that_torch_wrote_equals_transformers(tmp_path: Path) -> None:
    """The layout of prajjwal1/bert-tiny: a config of eleven keys without model_type, which opens
    for whoever names the architecture, and weights in a .bin alone."""
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 16, "hidden_act": "gelu", "initializer_range": 0.02, "vocab_size": 50,
        "hidden_dropout_prob": 0.1, "num_attention_heads": 2, "type_vocab_size": 2,
        "max_position_embeddings": 32, "num_hidden_layers": 2, "intermediate_size": 32,
        "attention_probs_dropout_prob": 0.1,
    }  # fmt: skip
    torch.manual_seed(0)
    reference = transformers.BertForPreTraining(transformers.BertConfig(**sizes)).eval()
    torch.save(reference.state_dict(), tmp_path / "pytorch_model.bin")
    write_json(tmp_path / "config.json", sizes)
    with pytest.raises(NotFound, match="has model_type None"):
        opened(tmp_path)
    spec = load_registry().models["bert"]
    model: Any = Checkpoint(tmp_path, spec, read_config(sizes, spec, tmp_path), sizes).model()
    ids = torch.randint(0, 50, (2, 7))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected = reference(input_ids=ids, attention_mask=mask).prediction_logits
        module = model.graphs()[0].module
        found = module(input_ids=ids, attention_mask=mask, token_type_ids=0 * ids)
    assert (found[0] - expected).abs().max() < 1e-5


def test_code_in_weights_is_not_run(folder: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return Path.touch, (folder / "owned",)

    torch.save({"transformer.wte.weight": Attack()}, as_torch(folder))
    with pytest.raises(BrokenFile, match=r"pytorch_model\.bin cannot be read as weights of torch"):
        opened(folder).model()
    assert not (folder / "owned").exists()


def split(folder: Path) -> dict[str, str]:
    """Turn the weights into two shards with an index, as large Hub repositories have them."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    table: dict[str, str] = {}
    for number in (0, 1):
        name = f"model-{number + 1:05}-of-00002.safetensors"
        part = {k: v for i, (k, v) in enumerate(sorted(tensors.items())) if i % 2 == number}
        save_file(part, folder / name)
        table |= dict.fromkeys(part, name)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": table})
    return table


def test_shards(folder: Path) -> None:
    whole = opened(folder).model().state_dict()
    split(folder)
    for name, tensor in opened(folder).model().state_dict().items():
        assert torch.equal(tensor, whole[name])


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", ".hidden", "a/b", 5])
def test_an_index_cannot_leave_its_folder(folder: Path, name: object) -> None:
    table = split(folder)
    write_json(
        folder / "model.safetensors.index.json", {"weight_map": {**table, "transformer.x": name}}
    )
    with pytest.raises(BrokenFile, match="only plain file names"):
        shards(folder, WEIGHTS)


def test_an_index_that_promises_too_much(folder: Path) -> None:
    table = split(folder)
    first = min(table.values())
    write_json(folder / "model.safetensors.index.json", {"weight_map": {**table, "more": first}})
    with pytest.raises(BrokenFile, match="lacks 'more'"):
        opened(folder).model()
    (folder / first).unlink()
    with pytest.raises(BrokenFile, match="which is missing"):
        opened(folder).model()


def foreign() -> ModelSpec:
    """GPT, were its reference one of diffusers' models."""
    return dataclasses.replace(
        load_registry().models["gpt"],
        model_type=None,
        model_class="AutoencoderGPT",
        class_key="_class_name",
        weights_file="diffusion_pytorch_model.safetensors",
    )


def test_weights_go_by_the_name_that_the_spec_gives(folder: Path, tmp_path: Path) -> None:
    spec, whole = foreign(), opened(folder).model()
    other = tmp_path / "other"
    write_json(other / "config.json", describe(spec, SMALL, "0.1.0"))
    save_weights(other, spec, SMALL, whole)
    file = other / spec.weights_file
    assert {path.name for path in other.iterdir()} == {"config.json", spec.weights_file}
    checkpoint = Checkpoint.open(other, [spec])
    assert checkpoint.weights_sha256() == sha256(file) == sha256(folder / WEIGHTS)
    file.rename(other / "part.safetensors")
    index = other / "diffusion_pytorch_model.safetensors.index.json"
    names = dict.fromkeys(load_file(other / "part.safetensors"), "part.safetensors")
    write_json(index, {"weight_map": names})
    assert checkpoint.weights_sha256() == hash_of_hashes(other, "part.safetensors")
    for name, tensor in checkpoint.model().state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name])
    index.rename(other / "model.safetensors.index.json")
    with pytest.raises(NotFound, match=f"neither {spec.weights_file} nor {index.name}"):
        checkpoint.model()


def test_a_class_under_another_key_is_written_and_recognised(folder: Path) -> None:
    specs = [*load_registry().models.values(), foreign()]
    description = describe(foreign(), SMALL, "0.1.0")
    assert description["_class_name"] == "AutoencoderGPT"
    assert not description.keys() & {"architectures", "model_type", "dtype"}
    file = folder / "config.json"
    assert recognise({"_class_name": "AutoencoderGPT"}, specs, file) is specs[-1]
    assert recognise({"_class_name": ["X", "AutoencoderGPT"]}, specs, file) is specs[-1]
    assert recognise({"architectures": ["GPT2LMHeadModel"]}, specs, file).name == "gpt"
    for strange in ("AutoencoderGPT2", "Autoencoder", {"AutoencoderGPT": 1}, None):
        with pytest.raises(NotFound, match=r"has _class_name .* which no plugin provides"):
            recognise({"_class_name": strange}, specs, file)
    with pytest.raises(NotFound, match="has model_type None"):
        recognise({"class_name": "AutoencoderGPT"}, specs, file)


def test_a_replaced_run_leaves_no_weights_of_another_name(tmp_path: Path) -> None:
    specs = [*load_registry().models.values(), foreign()]
    kept = tmp_path / "notes.safetensors"
    for file in (kept, *(tmp_path / spec.weights_file for spec in specs)):
        file.touch()
    remove_run(tmp_path, specs)
    assert list(tmp_path.iterdir()) == [kept]
