"""How Sphinx makes a site of these pages: make docs."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

import cambrian

project = "Cambrian"
author = "the authors of Cambrian"
copyright = "MIT licensed"
release = version = cambrian.__version__

extensions = ["myst_parser"]
myst_heading_anchors = 4  # as GitHub has them, so that a link to a heading works in both places
html_theme = "furo"
html_title = f"Cambrian {release}"
html_static_path: list[str] = []
html_copy_source = False

LINK = re.compile(r"\]\((?!\.\.)([\w./-]+\.md)\)")
README = re.compile(r"\]\((\.\./)+README\.md[^)]*\)")  # the repository's; the site has an index


def prepare(app: Sphinx, page: str, source: list[str]) -> None:
    """An index page's links are its table of contents, so that the page reads well on GitHub too.
    A page that no index links is a warning, and warnings are errors."""
    source[0] = README.sub("](/index.md)", source[0])
    if page.endswith("index"):
        pages = "\n".join(dict.fromkeys(LINK.findall(source[0])))
        source[0] += f"\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n"


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("source-read", prepare)
