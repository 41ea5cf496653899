"""The model's folder: recognised, loaded strictly, written reproducibly."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cambrian.checkpoint import Checkpoint, describe, recognise, save_weights, shards
from cambrian.errors import BrokenFile, NotFound
from cambrian.files import sha256, write_json
from cambrian.registry import load_registry
from cambrian.runs import remove_run
from cambrian.specs import ModelSpec
from cambrian_gpt.config import GPTConfig
from cambrian_gpt.model import GPT

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
        ({"n_embd": 16}, r"'transformer.*' has shape|shape"),
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
    save_file(tensors | {"surprise": torch.zeros(1)}, file)
    with pytest.raises(BrokenFile, match="surprise"):
        opened(folder).model()


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
    assert checkpoint.weights_sha256() == sha256(index)
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
