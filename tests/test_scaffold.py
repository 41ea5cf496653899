"""`cambrian new plugin`: what it writes, and what it refuses. That it works, a tutorial shows."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cambrian import __version__
from cambrian.errors import UsageError
from cambrian.scaffold import TEMPLATE, new_plugin, spelt


def new(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cambrian", "new", "plugin", *words],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_a_package_is_written(tmp_path: Path) -> None:
    done = new(tmp_path, "cambrian-two-words")
    assert done.returncode == 0, done.stderr
    told = [tmp_path / line for line in done.stdout.splitlines()]
    root = tmp_path / "cambrian-two-words"
    assert sorted(told) == sorted(path for path in root.rglob("*") if path.is_file())
    assert (root / "cambrian_two_words" / "model.py") in told
    assert (root / ".gitignore") in told and (root / ".github/workflows/ci.yml") in told
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert project["project"]["name"] == "cambrian-two-words"
    assert project["project"]["entry-points"]["cambrian"] == {"two-words": "cambrian_two_words"}
    (needs,) = map(Requirement, project["project"]["dependencies"])
    assert needs.name == "cambrian" and needs.specifier.contains(__version__)
    for file in told:
        text = file.read_text("utf-8")
        assert "novel" not in text.lower() and "novel" not in file.name
        if file.suffix == ".py":
            compile(text, file, "exec")
    assert (
        "class TwoWords(cambrian.Model)" in (root / "cambrian_two_words" / "model.py").read_text()
    )


def test_a_name_that_holds_the_templates_own() -> None:
    text = "cambrian_novel cambrian-novel NovelConfig novel"
    assert spelt(text, "my-novel") == ("cambrian_my_novel cambrian-my-novel MyNovelConfig my-novel")


@pytest.mark.parametrize("name", ["train", "optimizer", "graph", "case", "port", "f", "nn", "x"])
def test_a_name_that_is_a_word_of_ours(name: str, tmp_path: Path) -> None:
    """None of its classes may hide what the template uses."""
    new_plugin(name, tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        f"import cambrian_{name} as plugin; (spec,) = plugin.register_models()\n"
        "model = spec.model.load()(spec.config()); spec.data.load(); spec.pipeline.load()\n"
        "print(len(list(model.cases())), len(model.updates()), model.graphs()[0].name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "3 1 model\n", done.stderr


@pytest.mark.parametrize("name", ["Upper", "9th", "a_b", "a--b", "-a", "a/b", "class", ""])
def test_names_that_cannot_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot name a plugin"):
        new_plugin(name, tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "kind"),
    [("gpt", "model"), ("gpt-nano", "model"), ("onnx", "plugin"), ("builtin", "plugin")],
)
def test_a_name_that_is_taken(name: str, kind: str, tmp_path: Path) -> None:
    done = new(tmp_path, name)
    assert done.returncode == 2
    assert f"There is a {kind} '{name}' already" in done.stderr
    assert not any(tmp_path.iterdir())


def test_a_package_that_is_there_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package of that name, installed though it registers nothing."""
    (tmp_path / "site" / "cambrian_mine").mkdir(parents=True)
    (tmp_path / "site" / "cambrian_mine" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    done = new(tmp_path, "mine")
    assert done.returncode == 2 and "There is a plugin 'mine' already" in done.stderr


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    new_plugin("mine", tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("my own")
    with pytest.raises(UsageError, match="exists already"):
        new_plugin("mine", tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "my own"
    new_plugin("mine", tmp_path / "out", force=True)
    assert (tmp_path / "out" / "README.md").read_text() != "my own"


def test_the_template_stays_small() -> None:
    """A reader takes it in at one sitting."""
    files = [*TEMPLATE.glob("cambrian_novel/*.py")]
    lines = {file.name: len(file.read_text("utf-8").splitlines()) for file in files}
    assert sum(lines.values()) < 400 and max(lines.values()) < 140
