"""Beginning with another model's weights: what fits is kept, and the user is told the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import cambrian
from cambrian.checkpoint import keep_fitting
from cambrian.errors import UsageError
from cambrian.training import Job
from cambrian.training.loop import LoopTrainer

TINY = ["num_hidden_layers=1", "hidden_size=16", "num_attention_heads=2", "intermediate_size=16",
        "max_position_embeddings=24", "data.vocab_size=400"]  # fmt: skip
CPU = ["batch_size=4", "evaluate_every=0", "device=cpu", "precision=float32"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model."""
    out = tmp_path_factory.mktemp("base") / "mlm"
    cambrian.train("bert", out, settings=[*TINY, *CPU, "steps=3"])
    return out


def test_a_classifier_begins_with_the_encoder(base: Path, tmp_path: Path) -> None:
    told: list[Any] = []
    cambrian.train(
        "bert-classifier",
        tmp_path / "cls",
        base=base,
        settings=[*CPU, "steps=1", "optimizer.lr=0.0", "weight_decay=0.0"],
        report=told.append,
    )
    [event] = [event for event in told if "base" in event]
    assert event["base"] == str(base)
    assert set(event["fresh"]) == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }
    assert not event["left"]  # the masked language model's own head is left out knowingly
    old, new = (load_file(f / "model.safetensors") for f in (base, tmp_path / "cls"))
    shared = [name for name in new if name.startswith(("bert.embeddings", "bert.encoder"))]
    assert len(shared) == event["kept"]
    for name in shared:  # a rate of 0 left them as they were
        assert torch.equal(old[name], new[name])
    opened = cambrian.open_checkpoint(tmp_path / "cls")
    assert opened.config.hidden_size == 16  # the base's sizes, not the architecture's
    assert len(opened.config.labels) == 13
    processor = (base / "tokenizer.json").read_bytes()
    assert (tmp_path / "cls" / "tokenizer.json").read_bytes() == processor


def test_a_trainer_is_told_what_begins_fresh(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a base, what was not in it; of a checkpoint nothing; from scratch everything."""
    jobs: list[Job] = []
    monkeypatch.setattr(LoopTrainer, "check", lambda trainer, job: jobs.append(job))
    settings = [*CPU, "steps=1"]
    cambrian.train("bert-classifier", tmp_path / "a", base=base, settings=settings)
    cambrian.train(base, tmp_path / "b", settings=settings)
    cambrian.train("bert", tmp_path / "c", settings=[*TINY, *settings])
    headed, tuned, scratch = jobs
    assert {"classifier.weight", "bert.pooler.dense.bias"} <= {*headed.fresh}
    assert len(headed.fresh) == 4 and tuned.fresh == ()
    assert {*scratch.fresh} == {*scratch.model.state_dict()}


def test_what_fits_no_longer_is_fresh(base: Path, tmp_path: Path) -> None:
    """Two positions more: those embeddings are made anew, the rest is kept."""
    told: list[Any] = []
    cambrian.train(
        "bert-classifier",
        tmp_path / "cls",
        base=base,
        settings=[*CPU, "steps=1", "max_position_embeddings=26"],
        report=told.append,
    )
    assert "bert.embeddings.position_embeddings.weight" in told[0]["fresh"]
    assert "bert.embeddings.position_embeddings.weight" in told[0]["left"]


def test_a_based_run_resumes_to_the_same_bytes(base: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "base": base,
        "settings": [*CPU, "steps=6", "evaluate_every=3"],
    }
    whole = cambrian.train("bert-classifier", tmp_path / "whole", **given)
    asked = iter(range(1, 100))
    half = cambrian.train(
        "bert-classifier", tmp_path / "half", stop=lambda: next(asked) == 3, **given
    )
    assert whole.complete and not half.complete
    assert cambrian.resume(tmp_path / "half").complete
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "half" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_base_of_another_family_is_refused(base: Path, tmp_path: Path) -> None:
    for other in ("gpt-nano", "t5-nano", "roberta-classifier"):
        with pytest.raises(UsageError, match=r"is a bert model, which \S+ cannot begin with"):
            cambrian.train(other, tmp_path / "other", base=base)
    assert not (tmp_path / "other").exists()
    model = cambrian.open_checkpoint(base).model()
    with pytest.raises(UsageError, match=r"Nothing in .* fits this architecture"):
        keep_fitting(model, {"wte.weight": torch.ones(2, 2)}, base)
    with pytest.raises(UsageError, match="has weights of its own"):
        cambrian.train(base, tmp_path / "again", base=base)


def test_a_pooler_in_the_file_is_kept(base: Path, tmp_path: Path) -> None:
    """As in bert-base-uncased, whose file has the pooler beside the masked-LM head."""
    copy = tmp_path / "base"
    copy.mkdir()
    for file in base.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    tensors = load_file(base / "model.safetensors")
    pooler = {"bert.pooler.dense.weight": torch.eye(16), "bert.pooler.dense.bias": torch.ones(16)}
    save_file({**tensors, **pooler}, copy / "model.safetensors")
    told: list[Any] = []
    cambrian.train(
        "bert-classifier",
        tmp_path / "cls",
        base=copy,
        settings=[*CPU, "steps=1", "optimizer.lr=0.0"],
        report=told.append,
    )
    assert set(told[0]["fresh"]) == {"classifier.weight", "classifier.bias"}
