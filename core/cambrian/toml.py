"""TOML from elsewhere: what Python's parser would choke on is refused before it parses."""

from __future__ import annotations

import re
import tomllib
from typing import Any

# A key in more parts than any has here. The parser takes time and memory by the square of their
# number: 200 kB of one key are 40 GB.
PART = r"""(?:[\w-]++|"(?:\\.|[^"\\\n])*+"|'[^'\n]*+')"""
DEEP = re.compile(rf"(?<![\w\\-]){PART}(?:[ \t]*+\.[ \t]*+{PART}){{32}}")


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML; ValueError if it is none, or nests deeper than any setting."""
    if DEEP.search(text):
        raise ValueError("a key of more than 32 parts")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it nests too deeply") from error
