"""Which repository, and which revision of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cambrian.errors import UsageError

NAME = r"[A-Za-z0-9][\w.-]*"
URI = re.compile(rf"hf://(?P<repo>{NAME}/{NAME})(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)


@dataclass(frozen=True)
class Location:
    """A repository on the Hub at a revision: a commit, a branch or a tag."""

    repo: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"hf://{self.repo}@{self.revision}"

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which never changes, and not a branch or a tag."""
        return COMMIT.fullmatch(self.revision) is not None


def parse_uri(uri: str) -> Location:
    """Split hf://owner/repo[@revision]; UsageError shows the form."""
    match = URI.fullmatch(uri)
    if match is None or ".." in uri or "--" in match["repo"]:
        raise UsageError(f"'{uri}' is no Hub address; write hf://owner/repo@revision.")
    return Location(match["repo"], match["revision"] or "main")
