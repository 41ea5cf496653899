"""Data that comes with Python: enough to see every task work, with nothing to download.

Each function yields records; the registry names them.
"""

from __future__ import annotations

import datetime
import importlib
import inspect
import io
import keyword
import tokenize
from collections.abc import Iterator, Mapping
from typing import Any

TOPICS = 40  # paragraphs that a topic of the language reference must have to be a class
MODULES = ("argparse", "ast", "collections", "dataclasses", "datetime", "functools", "inspect",
           "json", "logging", "pathlib", "statistics", "string", "textwrap", "typing")  # fmt: skip


def topics() -> Iterator[Mapping[str, Any]]:
    """Paragraphs of Python's language reference and the topic each is from."""
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
        paragraphs = [part for part in paragraphs if len(part) >= 40]
        if len(paragraphs) >= TOPICS:
            yield from ({"text": part, "label": name} for part in paragraphs)


def tokens() -> Iterator[Mapping[str, Any]]:
    """Lines of Python's own library, each word tagged with what it is: a lexer's work, learnt."""
    for module in MODULES:
        source = inspect.getsource(importlib.import_module(module))
        words: list[str] = []
        tags: list[str] = []
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type in (tokenize.NEWLINE, tokenize.NL):
                if 2 < len(words) <= 40:
                    yield {"tokens": words, "tags": tags}
                words, tags = [], []
            elif token.string.strip() and len(token.string.split()) == 1:
                words.append(token.string)
                tags.append(_tag(token))


def _tag(token: tokenize.TokenInfo) -> str:
    if token.type == tokenize.NAME:
        return "keyword" if keyword.iskeyword(token.string) else "name"
    kinds = {tokenize.NUMBER: "number", tokenize.STRING: "string", tokenize.OP: "operator"}
    return kinds.get(token.type, "other")


def dates() -> Iterator[Mapping[str, Any]]:
    """Every second day of 1950 to 2029 as people write it, and as ISO 8601 does."""
    forms = ("%A, %d %B %Y", "%B %d, %Y", "%d %b %Y", "%d/%m/%Y", "%a %d %b %Y")
    day = datetime.date(1950, 1, 1)
    number = 0
    while day.year < 2030:
        yield {"source": _english(day, forms[number % len(forms)]), "target": day.isoformat()}
        day += datetime.timedelta(days=2)
        number += 1


DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September",
          "October", "November", "December")  # fmt: skip


def _english(day: datetime.date, form: str) -> str:
    """strftime in English whatever the locale, without leading zeros."""
    names = {"%A": DAYS[day.weekday()], "%a": DAYS[day.weekday()][:3]}
    names |= {"%B": MONTHS[day.month - 1], "%b": MONTHS[day.month - 1][:3]}
    names |= {"%d": str(day.day), "%m": str(day.month), "%Y": str(day.year)}
    for code, text in names.items():
        form = form.replace(code, text)
    return form
