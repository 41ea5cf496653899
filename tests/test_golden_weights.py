"""Published weights are held to what transformers computes with them: `verify --golden`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from cambrian import Golden, verify_golden
from cambrian.cli.verify import verify
from cambrian.errors import BrokenFile, Rejected, UsageError
from cambrian.files import sha256
from cambrian.reference import compare
from cambrian.testing.hub import LoopbackHub

HOWTO = Path(__file__).parents[1] / "docs" / "how-to" / "hub.md"
TOKENS = [5, 12, 7, 30, 9, 21]
ONES = [1] * len(TOKENS)
START = [0, 11, 3]
ENCODER = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "initializer_range": 0.2,
}
CONFIGS = {
    "gpt": transformers.GPT2Config(
        vocab_size=5000, n_positions=16, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2
    ),
    "bert": transformers.BertConfig(**ENCODER),
    "roberta": transformers.RobertaConfig(**ENCODER, type_vocab_size=1),
    "t5": transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=20, num_layers=2, num_heads=2,
        decoder_start_token_id=0,
    ),
}  # fmt: skip
CLASSES: dict[str, Any] = {
    "gpt": transformers.GPT2LMHeadModel,
    "bert": transformers.BertForMaskedLM,
    "roberta": transformers.RobertaForMaskedLM,
    "t5": transformers.T5ForConditionalGeneration,
}
INPUTS: dict[str, dict[str, dict[str, list[int]]]] = {
    "gpt": {
        "decoder": {"input_ids": TOKENS, "attention_mask": ONES, "position_ids": [*range(6)]},
    },
    "bert": {
        "model": {
            "input_ids": TOKENS, "attention_mask": ONES, "token_type_ids": [0, 0, 0, 1, 1, 1],
        },
    },
    "roberta": {"model": {"input_ids": TOKENS, "attention_mask": ONES}},
    "t5": {
        "decoder": {"input_ids": START, "encoder_attention_mask": ONES},  # in whatever order
        "encoder": {"input_ids": TOKENS, "attention_mask": ONES},
    },
}  # fmt: skip
POSITIONS = {"gpt": -1, "bert": 2, "roberta": 3, "t5": 1}


class World(NamedTuple):
    """A Hub with each family's checkpoint, and what transformers computes with it."""

    hub: LoopbackHub
    folders: Mapping[str, Path]
    golden: Mapping[str, dict[str, Any]]


@torch.inference_mode()
def computed(name: str, model: Any) -> dict[str, Any]:
    """The five largest logits as transformers has them."""
    given = {"input_ids": torch.tensor([TOKENS])}
    if name == "t5":
        given["decoder_input_ids"] = torch.tensor([START])
    if name == "bert":
        given["token_type_ids"] = torch.tensor([INPUTS["bert"]["model"]["token_type_ids"]])
    top = model(**given).logits[0, POSITIONS[name]].topk(5)
    return {
        "source": f"transformers {transformers.__version__}, float32",
        "inputs": INPUTS[name],
        "position": POSITIONS[name],
        "ids": top.indices.tolist(),
        "values": top.values.tolist(),
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("golden")
    folders = {name: root / name for name in CONFIGS}
    golden: dict[str, dict[str, Any]] = {}
    with LoopbackHub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        patch.setattr(constants, "HF_HUB_CACHE", str(root / "hub"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("NO_PROXY", "127.0.0.1")
        for name, kind in CLASSES.items():
            torch.manual_seed(0)
            model = kind(CONFIGS[name]).eval()
            for parameter_name, parameter in model.named_parameters():
                if parameter_name.endswith("bias"):
                    torch.nn.init.normal_(parameter, std=0.1)
            model.save_pretrained(folders[name])
            golden[name] = computed(name, model)
            publish(hub, name, folders[name])
        yield World(hub, folders, golden)


def publish(hub: LoopbackHub, name: str, folder: Path) -> None:
    hub.create(f"alice/{name}").commit({path.name: path for path in folder.iterdir()})


Declare = Callable[..., None]


@pytest.fixture
def declare(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Declare:
    """Writes the project's cambrian.toml: a model "mine" with golden values, some changed."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, repository: str = "", digest: str = "", **changes: Any) -> None:
        values = {**world.golden[name], **changes}
        lines = [f"{key} = {toml(value)}" for key, value in values.items()]
        digest = digest or sha256(world.folders[name] / "model.safetensors")
        (tmp_path / "cambrian.toml").write_text(
            f'[models.mine]\narchitecture = "{name}"\n'
            f'weights = "hf://alice/{repository or name}"\n'
            f'files = {{"model.safetensors" = "{digest}"}}\n'
            "[models.mine.golden]\n" + "\n".join(lines)
        )

    return write


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_transformers_computes_is_computed_here(
    name: str, world: World, declare: Declare
) -> None:
    declare(name)
    receipt = verify_golden("mine")
    assert receipt["passed"] is True
    assert (receipt["output"], receipt["ids"]) == ("logits", 5)
    assert receipt["position"] == POSITIONS[name]
    assert receipt["max_abs_diff"] < 2e-5
    assert receipt["source"] == world.golden[name]["source"]
    assert receipt["weights_sha256"] == sha256(world.folders[name] / "model.safetensors")


SWAPS = {
    "gpt": ("transformer.h.0.mlp.c_fc.bias", "transformer.h.1.mlp.c_fc.bias"),
    "bert": (
        "bert.encoder.layer.0.attention.self.query.weight",
        "bert.encoder.layer.0.attention.self.value.weight",
    ),
    "roberta": (
        "roberta.encoder.layer.1.attention.output.LayerNorm.bias",
        "roberta.encoder.layer.1.output.LayerNorm.bias",
    ),
    "t5": (
        "decoder.block.1.layer.1.EncDecAttention.k.weight",
        "decoder.block.1.layer.1.EncDecAttention.v.weight",
    ),
}


@pytest.mark.parametrize("name", SWAPS)
def test_two_tensors_that_changed_places_are_found(
    name: str, world: World, declare: Declare, tmp_path: Path
) -> None:
    """The file's hash is right, as it would be were the names read wrongly."""
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    tensors = load_file(world.folders[name] / "model.safetensors")
    one, other = SWAPS[name]
    tensors[one], tensors[other] = tensors[other].clone(), tensors[one].clone()
    save_file(tensors, wrong / "model.safetensors", {"format": "pt"})
    (wrong / "config.json").write_bytes((world.folders[name] / "config.json").read_bytes())
    publish(world.hub, f"wrong-{name}", wrong)
    declare(name, f"wrong-{name}", sha256(wrong / "model.safetensors"))
    with pytest.raises(Rejected, match=r"'mine', by 'logits' at position .* does not compute"):
        verify_golden("mine")


def test_a_wrong_value_is_named(world: World, declare: Declare) -> None:
    golden = world.golden["bert"]
    declare("bert", values=[*golden["values"][:4], golden["values"][4] - 0.01])
    with pytest.raises(Rejected, match=rf"id {golden['ids'][4]} in place 5 has .* difference of"):
        verify_golden("mine")


def test_a_tolerance_of_its_own(world: World, declare: Declare) -> None:
    values = [value - 0.01 for value in world.golden["bert"]["values"]]
    declare("bert", values=values, tolerance=0.02)
    assert verify_golden("mine")["max_abs_diff"] == pytest.approx(0.01, rel=0.01)


def test_a_wrong_order_is_named(world: World, declare: Declare) -> None:
    first, second, *rest = world.golden["gpt"]["ids"]
    declare("gpt", ids=[second, first, *rest])
    with pytest.raises(Rejected, match=rf"in place 1 is id {first} \(.*, not id {second} \("):
        verify_golden("mine")


def test_an_id_that_was_skipped_is_named(world: World, declare: Declare) -> None:
    golden = world.golden["t5"]
    declare("t5", ids=[golden["ids"][0], *golden["ids"][2:]], values=[
        golden["values"][0], *golden["values"][2:]
    ])  # fmt: skip
    with pytest.raises(Rejected, match=rf"in place 2 is id {golden['ids'][1]} "):
        verify_golden("mine")


def test_near_ties_may_change_places() -> None:
    def reference(*ids: int) -> Golden:
        inputs = {"model": {"input_ids": (1,)}}
        return Golden(inputs=inputs, ids=ids, values=(100.0, 100.0), source="somebody")

    row = np.array([0.0, 99.999, 99.0, 100.001])
    assert compare(reference(1, 3), row, "it")["allowed"] == pytest.approx(0.01)
    with pytest.raises(Rejected, match="in place 2 is id 1"):
        compare(reference(3, 2), row, "it")
    with pytest.raises(Rejected, match="NaN"):
        compare(reference(1, 3), np.array([0.0, np.nan, 0.0, 0.0]), "it")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inputs": {"decode": INPUTS["gpt"]["decoder"]}}, "no graph 'decode', only decoder"),
        ({"inputs": {"decoder": {"input_ids": TOKENS}}}, "input 'attention_mask' is missing"),
        (
            {"inputs": {"decoder": {**INPUTS["gpt"]["decoder"], "tokens": [1]}}},
            "decoder has no input 'tokens'",
        ),
        (
            {"inputs": {"decoder": {**INPUTS["gpt"]["decoder"], "attention_mask": [1]}}},
            "'sequence' is 6|must have shape",
        ),
        (
            {"inputs": {"decoder": {**INPUTS["gpt"]["decoder"], "input_ids": [0.5] * 6}}},
            "'input_ids' must be int64, not float64",
        ),
        (
            {"inputs": {"decoder": {**INPUTS["gpt"]["decoder"], "input_ids": [5000] * 6}}},
            "index out of range",
        ),
        ({"position": 6}, "'logits' has 6 positions, none 6"),
        ({"output": "logit"}, "there is no output 'logit' of real numbers, only logits"),
    ],
)
def test_values_that_do_not_fit_the_model_are_one_sentence(
    changes: dict[str, Any], words: str, declare: Declare
) -> None:
    declare("gpt", **changes)
    with pytest.raises(BrokenFile, match=words) as caught:
        verify_golden("mine")
    assert str(caught.value).startswith("The golden values of 'mine' do not fit the model: ")
    assert "\n" not in str(caught.value)


def test_an_id_beyond_the_vocabulary(world: World, declare: Declare) -> None:
    declare("bert", ids=[*world.golden["bert"]["ids"][:4], 40])
    with pytest.raises(Rejected, match="id 40 is none of the 40 there are"):
        verify_golden("mine")


def test_what_has_no_golden_values_says_how_to_make_them(world: World) -> None:
    with pytest.raises(UsageError, match=r"'gpt-nano' has no golden values.*\[models.gpt-nano.g"):
        verify_golden("gpt-nano")
    with pytest.raises(UsageError, match="is no registered model"):
        verify_golden(str(world.folders["gpt"]))


def test_the_how_to_makes_what_verifies(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (snippet,) = re.findall(r"^```python\n(.*?)^```", HOWTO.read_text("utf-8"), re.M | re.S)
    assert snippet.count("openai-community/gpt2") == 1
    exec(snippet.replace("openai-community/gpt2", str(world.folders["gpt"])), {})
    made = capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cambrian.toml").write_text(
        f'[models.my-gpt2]\narchitecture = "gpt"\nweights = "hf://alice/gpt"\n{made}'
    )
    assert verify_golden("my-gpt2")["max_abs_diff"] < 2e-5


def test_the_receipt_is_short_or_json(
    world: World, declare: Declare, capsys: pytest.CaptureFixture[str]
) -> None:
    declare("roberta")
    verify("mine", golden=True)
    shown = capsys.readouterr().out
    assert "the largest 5 of 'logits' at position 3\n" in shown
    assert re.search(r"^largest difference +\d\S*e-0\d$", shown, re.M)
    assert shown.count("\n") == 6
    verify("mine", golden=True, as_json=True)
    assert json.loads(capsys.readouterr().out) == verify_golden("mine")


def test_a_failure_is_exit_1(world: World, declare: Declare, tmp_path: Path) -> None:
    declare("roberta", ids=[*world.golden["roberta"]["ids"][:4], 39])
    done = subprocess.run(
        [sys.executable, "-m", "cambrian", "verify", "--golden", "mine", "--json"],
        env=world.hub.environment(tmp_path / "home"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: 'mine', by 'logits' at position 3, does not compute")
    assert done.stderr.count("\n") == 1
