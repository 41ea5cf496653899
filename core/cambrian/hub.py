"""hf://owner/repo@revision <-> a local folder, by huggingface_hub, with hashes checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cambrian.errors import BrokenFile, CambrianError, UsageError
from cambrian.files import sha256

URI = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
# What a model's folder needs; weights in any other form are not fetched.
WANTED = ("*.json", "*.txt", "*.model", "*.safetensors", "bpe.codes")


@dataclass(frozen=True)
class Location:
    """A repository on the Hub at a revision ("main" if the URI names none)."""

    repo: str
    revision: str


def parse_uri(uri: str) -> Location:
    """Split hf://owner/repo[@revision]; UsageError shows the form."""
    match = URI.fullmatch(uri)
    if match is None:
        raise UsageError(f"'{uri}' is no Hub address; write hf://owner/repo@revision.")
    return Location(match["repo"], match["revision"] or "main")


def fetch(uri: str, hashes: Mapping[str, str] | None = None) -> Path:
    """Return a local folder with the repository's files, downloading what the cache lacks.

    `hashes` maps file names to the sha256 they must have: BrokenFile if one differs or is missing.
    """
    location = parse_uri(uri)
    folder = download(location)
    for name, expected in (hashes or {}).items():
        file = folder / name
        if not file.is_file():
            raise BrokenFile(f"{uri} lacks the file {name}, which the registry expects.")
        if (found := sha256(file)) != expected:
            raise BrokenFile(
                f"{file} has sha256 {found}, but the registry expects {expected}; nothing was "
                "loaded. Remove the file from the cache and fetch it again."
            )
    return folder


def download(location: Location) -> Path:
    """Download a snapshot into the standard cache; every failure is one sentence."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, revision = location.repo, location.revision
    try:
        path = snapshot_download(repo, revision=revision, allow_patterns=list(WANTED))
    except HFValidationError as error:
        raise UsageError(f"'{repo}' is no name of a repository; write owner/name.") from error
    except GatedRepoError as error:
        raise CambrianError(
            f"hf://{repo} is gated: accept its terms on its page, then log in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise UsageError(
            f"hf://{repo} does not exist, or is private: check the name, or log in with "
            "`hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise UsageError(f"hf://{repo} has no revision '{revision}'.") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CambrianError(
            f"Cannot fetch hf://{repo}@{revision}: the Hub cannot be reached and the cache does "
            "not hold it. Check the network, HF_ENDPOINT and HF_HUB_OFFLINE."
        ) from error
    return Path(path)
