"""Writes a new plugin: an installable, tested package with one small model, to be changed.

The folder `plugin` beside this file is such a package for the name "novel"; whatever spells that
name is spelt anew, in files and in their names.
"""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from cambrian.errors import UsageError
from cambrian.files import require_free, staged_folder

TEMPLATE = Path(__file__).with_name("plugin")
SPELT = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
DOTTED = ("gitignore", "github")  # kept without the dot, lest they act where they are kept


def new_plugin(name: str, out: Path, *, force: bool = False) -> list[Path]:
    """Write the package of a plugin into the folder `out`; return its files, relative to it.

    UsageError for a name that cannot be a package's, or an `out` that exists.
    """
    if not SPELT.fullmatch(name) or keyword.iskeyword(name):
        raise UsageError(
            f"'{name}' cannot name a plugin: write small letters and digits, words joined by '-'."
        )
    require_free(out, force, "give another folder, or --force to replace it.")
    files: list[Path] = []
    with staged_folder(out) as folder:
        for source in sorted(TEMPLATE.rglob("*")):
            if source.is_file() and "__pycache__" not in source.parts:
                file = place(source.relative_to(TEMPLATE), name)
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_text(spelt(source.read_text("utf-8"), name), "utf-8")
                files.append(file)
    return files


def place(path: Path, name: str) -> Path:
    """Where a file of the template goes."""
    first, *rest = path.parts
    return Path(
        spelt(f".{first}" if first in DOTTED else first, name), *(spelt(p, name) for p in rest)
    )


def spelt(text: str, name: str) -> str:
    """A text of the template with the new name."""
    words = name.split("-")
    spellings = {
        "_novel": f"_{'_'.join(words)}",
        "Novel": "".join(word.capitalize() for word in words),
        "novel": name,
    }
    return re.sub("|".join(spellings), lambda found: spellings[found[0]], text)
