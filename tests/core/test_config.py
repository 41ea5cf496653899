"""Settings: strictness, precedence, and what a wrong one says."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import tomli_w

from cambrian.config import (
    OptimizerConfig,
    Recipe,
    TrainConfig,
    apply,
    as_changes,
    parse_assignment,
    parse_settings,
    read_changes,
    update,
)
from cambrian.data.config import TextData
from cambrian.errors import UsageError
from cambrian.specs import Ref, TrainerSpec


@dataclass(frozen=True)
class Config:
    n_layer: int = 2
    steps: int = 5  # also a training setting: ambiguous without its section
    n_inner: int | None = None

    def __post_init__(self) -> None:
        if self.n_layer < 1:
            raise ValueError("n_layer must be at least 1")


RECIPE = Recipe(data=TextData())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", 1),
        ("a=1e-3", 1e-3),
        ("a=true", True),
        ("a=[1, 2]", [1, 2]),
        ('a="x y"', "x y"),
        ("a=char", "char"),
        ("a=/tmp/x.txt", "/tmp/x.txt"),
        ("a=", ""),
        ("a=b=c", "b=c"),
    ],
)
def test_values_are_toml_or_bare_words(text: str, value: object) -> None:
    assert parse_assignment(text) == ("a", value)


@pytest.mark.parametrize("text", ["a", "=1", ""])
def test_no_assignment(text: str) -> None:
    with pytest.raises(UsageError, match="key=value"):
        parse_assignment(text)


def test_keys_find_their_section() -> None:
    changes = parse_settings(
        ["n_layer=6", "batch_size=4", "lr=0.1", "tokenizer=char", "train.steps=9"], Config(), RECIPE
    )
    assert changes == {
        "model": {"n_layer": 6},
        "train": {"batch_size": 4, "steps": 9},
        "optimizer": {"lr": 0.1},
        "data": {"tokenizer": "char"},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps=1", "ambiguous; write model.steps=1 or train.steps=1".replace("=1", "")),
        ("n_layers=6", "unknown key 'n_layers'. Did you mean 'n_layer'"),
        ("optimizer.lrr=6", "unknown key 'lrr'. Did you mean 'lr'"),
        ("batch_size=big", "batch_size: expected `int`, got `str`"),
        ("batch_size=1.5", "expected `int`"),
        ("schedule=cosin", "invalid enum value 'cosin'"),
        ("n_layer=0", "n_layer must be at least 1"),
    ],
)
def test_mistakes_are_one_sentence(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        apply(Config(), RECIPE, parse_settings([text], Config(), RECIPE), "--set")
    assert message in str(caught.value).replace("=1 or", " or").replace("=1.", ".")
    assert "\n" not in str(caught.value)


def test_later_layers_win_and_the_rest_stays() -> None:
    config, recipe = apply(Config(), RECIPE, {"train": {"steps": 7, "seed": 1}}, "entry")
    config, recipe = apply(config, recipe, {"train": {"steps": 8}, "model": {"n_layer": 3}}, "file")
    assert (recipe.train.steps, recipe.train.seed, config.n_layer) == (8, 1, 3)
    assert recipe.optimizer == OptimizerConfig() and recipe.data == TextData()


def test_unknown_section_and_section_that_is_none() -> None:
    with pytest.raises(UsageError, match=r"unknown section 'trian'.*'train'"):
        apply(Config(), RECIPE, {"trian": {}}, "x.toml")
    with pytest.raises(UsageError, match=r"'train' is a section"):
        apply(Config(), RECIPE, {"train": 5}, "x.toml")  # pyright: ignore[reportArgumentType]


def test_all_settings_survive_a_file(tmp_path: Path) -> None:
    recipe = Recipe(
        train=TrainConfig(steps=3, ema=0.5),
        optimizer=OptimizerConfig(name="muon", adamw_parameters=("a.*",)),
        data=TextData(source=("x y.txt",)),
    )
    file = tmp_path / "recipe.toml"
    file.write_text(tomli_w.dumps(as_changes(Config(n_layer=9), recipe)))
    assert apply(Config(), RECIPE, read_changes(file), "file") == (Config(n_layer=9), recipe)


@dataclass(frozen=True)
class Own:
    rank: int = 8


def test_a_trainer_has_settings_of_its_own_and_preferences(tmp_path: Path) -> None:
    own = {"config": Own, "recipe": {"optimizer": {"lr": 0.5}}}
    spec = TrainerSpec(name="x", summary="", trainer=Ref("x:y"), **own)  # pyright: ignore
    config, recipe = spec.settings(Config(), RECIPE)
    assert recipe.trainer == Own() and recipe.optimizer.lr == 0.5
    for key in ("rank", "trainer.rank"):
        changes = parse_settings([f"{key}=4", "lr=0.1"], config, recipe)
        _, set_ = apply(config, recipe, changes, "--set")
        assert set_.trainer == Own(4) and set_.optimizer.lr == 0.1
    with pytest.raises(UsageError, match=r"unknown key 'rnk'.*'rank'"):
        apply(config, recipe, {"trainer": {"rnk": 4}}, "--set")
    file = tmp_path / "recipe.toml"
    file.write_text(tomli_w.dumps(as_changes(config, set_)))
    assert apply(config, recipe, read_changes(file), "file") == (config, set_)

    plain = TrainerSpec(name="x", summary="", trainer=Ref("x:y"))
    with pytest.raises(UsageError, match="trainer has no settings of its own"):
        apply(*plain.settings(config, recipe), read_changes(file), "file")


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_changes(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[train\nsteps=1")
    with pytest.raises(UsageError, match=r"not valid TOML.*line 1"):
        read_changes(tmp_path / "bad.toml")


def test_update_checks_types_strictly() -> None:
    assert update(Config(), {"n_inner": 4}, "x").n_inner == 4
    with pytest.raises(UsageError, match="expected `int \\| null`"):
        update(Config(), {"n_inner": "4"}, "x")


def test_assignment_syntax_is_tomls() -> None:
    for raw in ("1_000", "0x10", "'single'", "[[1], [2]]"):
        assert parse_assignment(f"k={raw}")[1] == tomllib.loads(f"v={raw}")["v"]
