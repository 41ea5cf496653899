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
from pathlib import Path
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


# Fonts of matplotlib, which are there wherever this package is, with figures of one style each.
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono",
         "DejaVuSansMono-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic",
         "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
         "cmr10", "cmb10", "cmss10", "cmtt10", "cmti10")  # fmt: skip
SIDE = 28


def printed_digits(each: int = 40) -> Iterator[tuple[Any, str]]:
    """Digits in 17 fonts, `each` of every digit and font, as grey pictures of 28 by 28 with their
    label: turned by up to 12 degrees, of varying size and place, white on black."""
    import matplotlib
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    generator = np.random.Generator(np.random.Philox(0))
    for font in FONTS:
        for digit in "0123456789":
            drawing = ImageFont.truetype(folder / f"{font}.ttf", 4 * 24)
            large = Image.new("L", (4 * SIDE, 4 * SIDE))
            middle = (2 * SIDE, 2 * SIDE)
            ImageDraw.Draw(large).text(middle, digit, fill=255, font=drawing, anchor="mm")
            for _ in range(each):
                angle, size = generator.uniform(-12, 12), generator.uniform(0.75, 1.05)
                move = generator.uniform(-2, 2, 2)
                yield _turned(large, angle, size, move), digit


def few_printed_digits() -> Iterator[tuple[Any, str]]:
    """Two of every digit and font."""
    return printed_digits(2)


def _turned(large: Any, angle: float, size: float, move: Any) -> Any:
    """A picture of four times the side, turned, scaled and moved (in pixels of the small one)."""
    from PIL import Image

    side = round(large.width * size)
    turned = large.rotate(angle, Image.Resampling.BICUBIC, translate=tuple(4 * move))
    scaled = turned.resize((side, side), Image.Resampling.LANCZOS)
    placed = Image.new("L", large.size)
    placed.paste(scaled, ((large.width - side) // 2, (large.height - side) // 2))
    return placed.resize((SIDE, SIDE), Image.Resampling.BOX)
