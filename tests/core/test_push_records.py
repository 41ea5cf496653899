"""What a push says of a run, and what it keeps to itself; and how what others say is shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import cambrian
from cambrian import pushing
from cambrian.card import header, is_sealed
from cambrian.cli.progress import Downloads, TrainingProgress
from cambrian.errors import BrokenFile, UsageError
from cambrian.run_record import RunRecord

TINY = ("n_layer=1", "n_embd=16", "n_head=2", "n_positions=16", "steps=6", "evaluate_every=2",
        "evaluate_batches=2", "validation_fraction=0.3", "precision=float32", "tokenizer=char",
        "device=cpu")  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, by the public function."""
    root = tmp_path_factory.mktemp("made")
    text = root / "sums|<b>`x`.txt"
    text.write_text("".join(f"{n} and {m} is {n + m}.\n" for n in range(40) for m in range(20)))
    cambrian.train("gpt", root / "sums", data=[str(text)], settings=TINY)
    return root / "sums"


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(made, tmp_path / "model")
    return tmp_path / "model"


def front(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_says_what_the_run_recorded(made: Path) -> None:
    plan = pushing.plan(made, "hf://alice/sums", license="Apache-2.0")
    [source] = [file.source for file in plan.files if file.name == "README.md"]
    assert isinstance(source, bytes)
    card = source.decode()
    assert is_sealed(card) and is_sealed((made / "README.md").read_text())
    head = front(card)
    assert head["license"] == "apache-2.0" and head["pipeline_tag"] == "text-generation"
    assert head["library_name"] == "cambrian" and head["tags"] == ["gpt"]
    data = json.loads((made / "train/data.json").read_text())
    log = [json.loads(x) for x in (made / "train/metrics.jsonl").read_text().splitlines()]
    best = min((r for r in log if "validation_loss" in r), key=lambda r: r["validation_loss"])
    [result] = head["model-index"][0]["results"]
    loss = {m["type"]: m["value"] for m in result["metrics"]}["loss"]
    assert loss == pytest.approx(best["validation_loss"], rel=1e-5)
    assert f"| step | {best['step']} |" in card and "| steps trained | 6 |" in card
    assert f"| content sha256 | {data['content_sha256']} |" in card
    assert "cambrian train gpt --config recipe.toml" in card and "n_embd = 16" in card
    assert "cambrian run hf://alice/sums" in card and "![loss.svg](loss.svg)" in card
    assert str(made.parent) not in card, "a path of this machine"
    assert r"sums\|\<b\>\`x\`.txt" in card


def test_another_trainer_is_part_of_the_command(model: Path) -> None:
    file = model / "train" / "run.json"
    record = RunRecord.read(model / "train")
    assert record is not None and record.command().startswith("cambrian train gpt --config")
    file.write_text(json.dumps({**json.loads(file.read_text()), "trainer": "lora"}))
    record = RunRecord.read(model / "train")
    assert record is not None
    assert record.command().startswith("cambrian train gpt --trainer lora --config")


def test_names_are_those_of_the_hub() -> None:
    head = front("\n".join(header("text2text-generation", [], "OpenRAIL++")))
    assert (head["pipeline_tag"], head["license"]) == ("text-generation", "openrail++")
    assert "pipeline_tag" not in front("\n".join(header("image-reconstruction", [])))


def test_the_figures_are_of_the_weights_that_go_and_terms_are_inherited(model: Path) -> None:
    train = model / "train"
    state = json.loads((train / "step-00000006/state.json").read_text())
    (train / "step-00000006/state.json").write_text(json.dumps({**state, "best_step": 2}))
    run = json.loads((train / "run.json").read_text())
    (train / "run.json").write_text(json.dumps({**run, "base": "gpt2"}))
    plan = pushing.plan(model, "hf://alice/sums")
    [source] = [file.source for file in plan.files if file.name == "README.md"]
    assert isinstance(source, bytes)
    log = [json.loads(x) for x in (train / "metrics.jsonl").read_text().splitlines()]
    loss = next(r["validation_loss"] for r in log if r["step"] == 2 and "validation_loss" in r)
    card = source.decode()
    assert f"| step | 2 |\n| validation loss | {loss:.5g} |" in card
    assert front(card)["base_model"] == "openai-community/gpt2" and front(card)["license"] == "mit"
    assert "cambrian train gpt --base gpt2 --config" in card


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data.json", '{"sources": 5}'),
        ("data.json", '{"validation_sources": {"a": 1}}'),
        ("recipe.toml", "train = 5"),
        ("recipe.toml", '[train]\nsteps = "x"'),
        ("metrics.jsonl", '{"step": "a", "loss": 1}'),
        ("step-00000006/state.json", '{"step": "abc"}'),
        ("step-00000006/state.json", '{"step": 6, "circumstances": 5}'),
        ("step-00000006/state.json", '{"step": 6, "best": 1, "best_step": [1]}'),
    ],
)
def test_a_record_of_other_types_is_said_to_be_broken(model: Path, name: str, text: str) -> None:
    (model / "train" / name).write_text(text)
    with pytest.raises(BrokenFile, match=r"is not as a run writes it: Expected"):
        RunRecord.read(model / "train")


def test_what_is_private_is_refused_or_said(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/bob/secret"}))
    sources = ["https://u:pw@h/x?token=t#k", "file:///home/bob/x.txt", "hf://me/data@main", "/a/b"]
    (model / "train/data.json").write_text(json.dumps({"sources": sources, "/home/bob/k": 1}))
    plan = pushing.plan(model, "hf://alice/sums", license="mit")
    [source] = [file.source for file in plan.files if file.name == "README.md"]
    assert isinstance(source, bytes)
    assert "| sources | https://h/x, x.txt, hf://me/data@main, b |\n| k | 1 |" in source.decode()
    assert plan.notes == (
        "config.json names paths of this machine or addresses with a key, /home/bob/secret for "
        "one, for all to read",
    )
    (model / "tokenizer_config.json").write_text(json.dumps({"token": "hf_" + "A" * 34}))
    with pytest.raises(UsageError, match=r"tokenizer_config\.json holds what looks like a token"):
        pushing.plan(model, "hf://alice/sums")


def test_what_the_hub_says_cannot_steer_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    event = {"file": "[/x].json", "done": 1, "total": 2}
    for terminal in (False, True):
        for display in (Downloads(), TrainingProgress()):
            assert display.console.is_terminal == terminal
            with display:
                display.report({"notice": "\x1b]0;x\x07[/x]  done"})
                display.report(event)
        monkeypatch.setenv("FORCE_COLOR", "1")
    said = capsys.readouterr().err
    assert said.count(" ]0;x [/x]  done") == 4 and "\x1b]" not in said and "\x07" not in said
