"""What a repository holds at a revision, and which of it a model needs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cambrian.errors import BrokenFile, CambrianError, listed
from cambrian.hub.location import Location
from cambrian.torch_files import torch_name

MANIFEST = "manifest.json"
# All that is read beside the weights: descriptions, and what processors are in.
BESIDE = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "bpe.codes",
    "spiece.model",
    MANIFEST,
)
INDEX = ".index.json"
WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository, and the hashes that are known of its content.

    The Hub knows the sha256 (hex) of what it stores apart from git, and git's own sha1 of a blob
    for the rest.
    """

    name: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def etag(self) -> str:
        """What the client's cache calls the file's content: the sha256 if there is one."""
        return self.sha256 or self.git_sha1 or ""


@dataclass(frozen=True)
class Listing:
    """The files of a repository, named with their folders; `location` is pinned.

    Of those in folders only what an export's manifest, a lock or the registry names is ever used.

    `cut_off` says why the Hub was not asked, where this is only what the cache holds.
    """

    location: Location
    files: Mapping[str, RemoteFile]
    license: str = ""
    gated: bool = False
    cut_off: str = ""


def beside(listing: Listing) -> list[str]:
    """The names of all but the weights that a model's or an exported folder needs."""
    return [name for name in listing.files if name in BESIDE]


def weights(listing: Listing, known: Sequence[str]) -> str:
    """The name of the weights' file, or of the index of its shards: the first of `known` that is
    there, as safetensors if possible, else as torch's own format. CambrianError if none is."""
    names = listing.files
    for name in [*known, *map(torch_name, known)]:
        for candidate in (name, name + INDEX):
            if candidate in names:
                return candidate
    if listing.cut_off:
        raise lacking(listing, "weights")
    others = [name for name in names if not name.endswith((".json", ".txt", ".model", ".md"))]
    held = f"it holds {listed(others)}" if others else "it holds no weights at all"
    raise CambrianError(
        f"{listing.location} has no weights that Cambrian reads ({' or '.join(known)}): {held}."
    )


def require(listing: Listing, names: Sequence[str]) -> list[RemoteFile]:
    """The named files; BrokenFile if the repository lacks one."""
    for name in names:
        if name not in listing.files:
            if listing.cut_off:
                raise lacking(listing, name)
            raise BrokenFile(
                f"{listing.location} lacks the file {name}; the repository is incomplete, or the "
                "revision is not the one that was meant."
            )
    return [listing.files[name] for name in names]


def lacking(listing: Listing, what: str) -> CambrianError:
    """What to say where the cache holds a part, and nobody can be asked for the rest."""
    return CambrianError(f"The cache lacks the {what} of {listing.location}. {listing.cut_off}")


class Digest:
    """Both hashes of a file while it streams by; git's sha1 begins with the size (git help
    hash-object)."""

    def __init__(self, size: int) -> None:
        self._sha256 = hashlib.sha256()
        self._sha1 = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)

    def update(self, data: bytes) -> None:
        """Take the next bytes."""
        self._sha256.update(data)
        self._sha1.update(data)

    @property
    def sha256(self) -> str:
        """In hex."""
        return self._sha256.hexdigest()

    @property
    def git_sha1(self) -> str:
        """In hex."""
        return self._sha1.hexdigest()

    def fits(self, file: RemoteFile) -> bool:
        """Whether this is the content that was listed; a sha256 counts before a sha1."""
        if file.sha256 is not None:
            return self.sha256 == file.sha256
        return file.git_sha1 is not None and self.git_sha1 == file.git_sha1
