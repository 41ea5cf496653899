"""The documentation is held to the code: generated pages, links, and every command it shows."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.M | re.S)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


def test_generated_reference_is_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def commands(page: Path) -> list[str]:
    """The commands of a page's console blocks, in order."""
    blocks = CONSOLE.findall(page.read_text("utf-8"))
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_pages_show_commands() -> None:
    assert len(commands(ROOT / "README.md")) == 5
    for name, count in (("first-gpt", 7), ("first-classifier", 6), ("first-translator", 5)):
        assert len(commands(ROOT / "docs" / "tutorials" / f"{name}.md")) >= count


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/tutorials/first-gpt.md",
        "docs/tutorials/first-classifier.md",
        "docs/tutorials/first-translator.md",
    ],
)
def test_commands_and_snippets_run(page: str, tmp_path: Path) -> None:
    # What a run prints must not depend on the terminal it is read in.
    environment = {**os.environ, "COLUMNS": "80"}
    for line in commands(ROOT / page):
        words = shlex.split(line)
        assert words[0] == "cambrian"
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert done.stdout.strip(), f"{line} prints no result"
    for snippet in PYTHON.findall((ROOT / page).read_text("utf-8")):
        done = subprocess.run(
            [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{snippet}\n{done.stderr}"


def test_every_hook_is_documented_and_used() -> None:
    from cambrian import hookspecs

    text = (ROOT / "docs" / "reference" / "hooks.md").read_text("utf-8")
    for name in vars(hookspecs):
        if name.startswith("register_"):
            assert f"## {name}" in text
