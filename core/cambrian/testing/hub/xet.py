"""Xet without a server of its own: the client keeps its storage in a folder, and is told where.

The address "local:///folder" makes the client's own code store and fetch there, one process at a
time. What it stored is read from its shards: lists of 48-byte records. Source: the shard format of
xet-core, as hf-xet 1.8 writes it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cambrian.testing.hub.repository import Blob
from cambrian.testing.hub.site import Site
from cambrian.testing.hub.wire import Body, Refusal, Request, Response

RECORD = 48  # bytes
END = b"\xff" * 32
VERIFIED, DESCRIBED = 1 << 31, 1 << 30  # flags of a file: what follows its segments
EXPIRES = 4102444800  # 2100-01-01, in seconds since 1970


class Stored(NamedTuple):
    """A file that a shard lists: its two hashes in hex and its bytes."""

    xet: str
    sha256: str
    size: int


def read_token(site: Site, request: Request) -> Response:
    """Where to fetch files from."""
    site.readable(request)
    return token(site)


def write_token(site: Site, request: Request) -> Response:
    """Where to store files."""
    site.writable(request, proposal=request.flag("create_pr"))
    return token(site)


def token(site: Site) -> Response:
    """The storage's address, as one half of the client reads it in JSON, the other in headers."""
    if site.xet is None:
        raise Refusal(404, "The loopback Hub has no xet; set HF_HUB_DISABLE_XET=1")
    address, word = f"local://{site.xet}", "loopback"
    headers = {
        "X-Xet-Cas-Url": address,
        "X-Xet-Access-Token": word,
        "X-Xet-Token-Expiration": str(EXPIRES),
    }
    answer = {"casUrl": address, "accessToken": word, "exp": EXPIRES}
    return Response.json(answer, headers=headers)


def find_stored(folder: Path, sha256: str) -> Blob | None:
    """A file that the client has stored, by its sha256. Only xet can give its bytes."""
    for shard in sorted(folder.rglob("xorbs/shards/*.mdb")):
        for file in files_of(shard.read_bytes()):
            if file.sha256 == sha256:
                body = Body(file.size, refuse)
                return Blob(body, sha256, git_sha1="", lfs=True, xet=file.xet)
    return None


def refuse(start: int, stop: int) -> bytes:
    """There is no way here to the bytes of a file that only xet holds."""
    raise Refusal(403, "Only xet holds this file")


def files_of(shard: bytes) -> Iterator[Stored]:
    """The files that a shard lists. Each is a record of its hash, flags and number of segments,
    the segments, perhaps as many records that verify them, and one with the sha256."""
    at = RECORD  # after the shard's own head
    while (name := shard[at : at + 32]) != END:
        flags, count = struct.unpack_from("<II", shard, at + 32)
        segments = range(at + RECORD, at + RECORD * (1 + count), RECORD)
        size = sum(struct.unpack_from("<I", shard, segment + 36)[0] for segment in segments)
        at += RECORD * (1 + count * (2 if flags & VERIFIED else 1))
        if flags & DESCRIBED:
            yield Stored(hexadecimal(name), hexadecimal(shard[at : at + 32]), size)
            at += RECORD


def hexadecimal(words: bytes) -> str:
    """A hash as xet writes it: four little-endian words of 64 bits."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", words))
