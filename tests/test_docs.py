"""The documentation is held to the code: generated pages, links, and every command it shows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cambrian.testing.hub import LoopbackHub
from console import OFFLINE, Shell, agrees, blocks, check_page, own_python
from workshop import ENTRIES, QuickShell, fill_folder, fill_hub

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
RUN_WHOLE = [ROOT / "README.md", *sorted((DOCS / "tutorials").glob("[!i]*.md"))]
RUN_SHORT = [DOCS / "index.md", *sorted((DOCS / "how-to").glob("*.md"))]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_generated_reference_is_current() -> None:
    done = subprocess.run(
        [sys.executable, str(DOCS / "generate.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def anchors(page: Path) -> set[str]:
    """The names that GitHub and the site give to a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text("utf-8")):
        if "://" not in target:
            file = page.parent / target if target else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("loss  1.5444\n", "loss 0.9\n", True),
        ("loss  1.5444\n", "lost 1.5444\n", False),
        ("at ...\n", "at runs/first\nand more\n", True),
        ("cases  38\n", "cases 38\nartifact x\n", False),
        ("@e1de005cb4fd4d6bf3e5\n", "@0a1b2c3d4e5f60718293\n", True),
    ],
)
def test_output_is_compared_but_for_digits(shown: str, printed: str, same: bool) -> None:
    assert agrees(shown, printed) is same


def shown(page: Path) -> list[str]:
    """The commands of a page that the tests run."""
    run = [b for b in blocks(page) if b.language == "console" and b.mark != "not run"]
    return [command.line for block in run for command in block.commands]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_is_run_or_says_why_not(page: Path) -> None:
    text = page.read_text("utf-8")
    for block in blocks(page):
        assert block.mark != "not run" or len(block.what) > 10, f"say why not: {block.text}"
    if page in (*RUN_WHOLE, *RUN_SHORT):
        unfenced = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
        loose = re.search(r"^ {4}(\$ )?cambrian .*", unfenced, re.M)
        assert loose is None, f"{loose and loose[0]} is not in a console block, so nothing runs it"
        assert len(re.findall(r"^<!-- (not run|file|output)", text, re.M)) == len(
            [block for block in blocks(page) if block.mark]
        ), "a mark stands on the line before its block"
    elif page.is_relative_to(DOCS) and "examples" not in page.parts:
        assert not shown(page), "nothing runs this page: see RUN_WHOLE and RUN_SHORT"


def test_pages_show_commands() -> None:
    assert len(shown(ROOT / "README.md")) == 5
    assert sum(len(shown(page)) for page in RUN_WHOLE) >= 35
    assert sum(len(shown(page)) for page in RUN_SHORT) >= 45


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    with LoopbackHub() as made:
        fill_hub(made, tmp_path_factory.mktemp("models"))
        yield made


def variables(hub: LoopbackHub, home: Path) -> dict[str, str]:
    """The environment of somebody who has nothing yet but a token."""
    own = {"XDG_CONFIG_HOME": str(home / "config"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_me"}
    return {**hub.environment(home), **OFFLINE, **own}


PLUGIN_PAGE = """
<!-- file: mine/pyproject.toml -->
```toml
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"
[project]
name = "mine"
version = "1"
dependencies = ["cambrian"]
[project.entry-points.cambrian]
mine = "mine"
```

<!-- file: mine/mine.py -->
```python
from cambrian import Entry, hookimpl

@hookimpl
def register_entries():
    return [Entry(name="mine", architecture="gpt")]
```

```console
$ cd mine
$ pip install .
...
$ cambrian list mine
NAME  ARCH  TASK             ORIGIN  SUMMARY
mine  gpt   text-generation  mine
```
"""


@pytest.mark.slow
def test_a_page_may_write_a_plugin_and_install_it(tmp_path: Path) -> None:
    page, python = tmp_path / "page.md", own_python(tmp_path / "python")
    page.write_text(PLUGIN_PAGE)
    assert check_page(page, Shell(tmp_path, OFFLINE, python)) == 3
    page.write_text(PLUGIN_PAGE.replace("gpt   text-generation", "bert  text-generation"))
    with pytest.raises(AssertionError, match="prints"):
        check_page(page, Shell(tmp_path, OFFLINE, python))


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_WHOLE, ids=name)
def test_tutorials_run(page: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    python = own_python(tmp_path / "python")
    count = check_page(page, Shell(work, variables(hub, tmp_path / "home"), python))
    assert count == len(shown(page))


@pytest.fixture(scope="module")
def workshop(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that how-to pages take for granted."""
    root = tmp_path_factory.mktemp("workshop")
    work, config = root / "work", root / "home" / "config" / "cambrian"
    work.mkdir()
    config.mkdir(parents=True)
    (config / "registry.toml").write_text(ENTRIES)
    fill_folder(work)
    shell = QuickShell(work, variables(hub, root / "home"))
    shell.run("cambrian train gpt-nano --data 'corpus/*.txt' --out runs/bard")
    reviews = "--data reviews.pos --data reviews.neg"
    shell.run(
        f"cambrian train bert-classifier --base bert-base-uncased {reviews} --out runs/topics"
    )
    return work


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_SHORT, ids=name)
def test_how_to_pages_run(page: Path, hub: LoopbackHub, workshop: Path, tmp_path: Path) -> None:
    shutil.copytree(workshop.parent, tmp_path / "root")
    home = tmp_path / "root" / "home"
    count = check_page(page, QuickShell(tmp_path / "root" / "work", variables(hub, home)))
    assert count == len(shown(page))


def test_every_hook_is_documented_and_used() -> None:
    from cambrian import hookspecs

    text = (DOCS / "reference" / "hooks.md").read_text("utf-8")
    for hook in vars(hookspecs):
        if hook.startswith("register_"):
            assert f"## {hook}" in text
