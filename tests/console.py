"""What pages show in console blocks: found, run, and held to the output that stands there.

    $ cambrian verify runs/first-onnx         a command; \\ at its end goes on with the next line
    cases               38                    what it prints on standard output, if it is shown

A comment on the line before a block says how it is taken:

    <!-- not run: needs a GPU -->             the tests do not run it, and why
    <!-- output varies -->                    what is printed differs from machine to machine
    <!-- file: cambrian_mine/model.py -->     not a block of commands: this file is written

Digits may differ from what is shown, and so may the number of blanks; `...` stands for anything.
`python tests/console.py README.md` runs a page and writes what it printed where that differs.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

FENCE = re.compile(
    r"(?:^<!-- (?P<mark>not run|output varies|file)(?:: (?P<what>[^\n]+?))? -->\n+)?"
    r"^```(?P<language>[\w-]+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"\d[\d,.]*\d(e[-+]?\d+)?|\d(e[-+]?\d+)?")
HASH = re.compile(r"\b(?=\w*\d)[0-9a-f]{12,64}\b")
VARIABLE = re.compile(r"[A-Z_]+=.*")
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
PROGRAMS = {"cambrian": ["-m", "cambrian"], "pip": ["-m", "pip"], "pytest": ["-m", "pytest"]}


@dataclass
class Command:
    """A line to run, and the output shown below it ("" if none is)."""

    line: str
    shown: str = ""


@dataclass
class Block:
    """A fenced block of a page, and what the comment before it says."""

    language: str
    text: str
    mark: str
    what: str

    @property
    def commands(self) -> list[Command]:
        """What it asks to be run."""
        found: list[Command] = []
        for line in re.sub(r"\\\n\s*", "", self.text).splitlines(keepends=True):
            if line.startswith("$ "):
                found.append(Command(line[2:].strip()))
            else:
                assert found, f"a console block begins with output: {line}"
                found[-1].shown += line
        return found


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    for match in FENCE.finditer(page.read_text("utf-8")):
        yield Block(match["language"], match["text"], match["mark"] or "", match["what"] or "")


def agrees(shown: str, printed: str) -> bool:
    """Whether the output shown is what was printed, but for digits and blanks."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(masked(shown), masked(printed), flags)


def masked(text: str) -> str:
    """A text with the same digit for every number and every hash."""
    return NUMBER.sub("0", HASH.sub("0", text))


@dataclass
class Shell:
    """Runs what pages show, one line after the other, in a folder that `cd` changes."""

    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    python: str = sys.executable

    def run(self, line: str) -> str:
        """What a command prints on standard output; AssertionError if it fails or is unknown."""
        words = shlex.split(line, comments=True)
        given: dict[str, str] = {}
        while VARIABLE.fullmatch(words[0]):
            name, _, given[name] = words.pop(0).partition("=")
        if words[0] == "cd":
            self.folder /= words[1]
            assert self.folder.is_dir(), line
            return ""
        assert words[0] in {"python", *PROGRAMS}, f"the tests cannot run {line}; mark it"
        return self.start([*PROGRAMS.get(words[0], []), *words[1:]], given, line)

    def start(self, arguments: list[str], given: Mapping[str, str], what: str) -> str:
        """What Python prints with these arguments."""
        done = subprocess.run(
            [self.python, *arguments],
            cwd=self.folder,
            # What a run prints must not depend on the terminal it is read in.
            env={**os.environ, "COLUMNS": "80", **self.variables, **given},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{what}\n{done.stdout}{done.stderr}"
        return done.stdout

    def take(self, block: Block) -> Iterator[tuple[Command, str]]:
        """Do what a block asks for; yields its commands with what they printed."""
        if block.mark == "file":
            file = self.folder / block.what
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, "utf-8")
        elif block.mark != "not run" and block.language == "python":
            self.start(["-c", block.text], {}, block.text)
        elif block.mark != "not run" and block.language == "console":
            for command in block.commands:
                yield command, self.run(command.line)


def own_python(folder: Path) -> str:
    """A Python that has all that this one has; what is installed by it goes into `folder`."""
    venv.create(folder, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    paths = [path for path in sys.path if Path(path).is_dir()]
    (packages / "beside.pth").write_text("\n".join(paths) + "\n")
    return str(folder / "bin" / "python")


def check_page(page: Path, shell: Shell) -> int:
    """Run a page; AssertionError where it fails or prints something else. Counts the commands."""
    count = 0
    for block in blocks(page):
        for command, printed in shell.take(block):
            count += 1
            quiet = command.line.startswith("cd ") or " --out " in command.line
            assert printed.strip() or quiet, f"{command.line}: no result"
            if command.shown and block.mark != "output varies":
                assert agrees(command.shown, printed), f"{command.line} prints\n{printed}"
    return count


def renew_page(page: Path, shell: Shell) -> None:
    """Write what commands print in the place of what does not agree with it."""
    text = page.read_text("utf-8")
    for block in blocks(page):
        for command, printed in shell.take(block):
            varies = block.mark == "output varies"
            if command.shown and (varies or not agrees(command.shown, printed)):
                text = text.replace(command.shown, printed, 1)
    page.write_text(text, "utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for name in sys.argv[1:]:
            renew_page(Path(name), Shell(Path(scratch)))
