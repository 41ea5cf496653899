"""The Hub's answers to those who read: facts about repositories, trees and files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from cambrian.testing.hub.repository import Blob, Commit, Repository
from cambrian.testing.hub.site import Site, commit_at
from cambrian.testing.hub.wire import Refusal, Request, Response

FRONT_MATTER = re.compile(r"---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
SCALAR = re.compile(r"""([\w-]+):[ \t]*["']?([^"'\n]+?)["']?[ \t]*""")


def whoami(site: Site, request: Request) -> Response:
    """Who the token stands for."""
    user = site.user(request)
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    role = "write" if user.can_write else "read"
    return Response.json(
        {
            "type": "user",
            "name": user.name,
            "fullname": user.name,
            "orgs": [{"type": "org", "name": name} for name in user.orgs],
            "auth": {
                "type": "access_token",
                "accessToken": {"displayName": "loopback", "role": role},
            },
        }
    )


def harnesses(site: Site, request: Request) -> Response:
    """What a client asks first of all, for its telemetry: nothing to say."""
    return Response.json({})


def may_read(site: Site, request: Request) -> Response:
    """Whether files may be read."""
    site.readable(request)
    return Response.json({})


def may_write(site: Site, request: Request) -> Response:
    """Whether the repository may be written to."""
    site.writable(request)
    return Response.json({})


def info(site: Site, request: Request) -> Response:
    """A repository at a revision, with what its card says and the names of its files."""
    repository = site.repository(request)
    commit = commit_at(repository, request.named.get("revision", "main"))
    card = card_data(commit.files)
    answer: dict[str, Any] = {
        "id": repository.name,
        "author": repository.name.split("/")[0],
        "sha": commit.sha,
        "lastModified": stamp(commit),
        "private": repository.private,
        "gated": repository.gated,
        "disabled": False,
        "tags": [f"license:{card['license']}"] if "license" in card else [],
        "downloads": 0,
        "likes": 0,
        "cardData": card or None,
        "siblings": [sibling(path, blob, request) for path, blob in commit.files.items()],
    }
    if wanted := request.query.get("expand"):
        answer = {key: answer[key] for key in ("id", *wanted) if key in answer}
    return Response.json(answer)


def sibling(path: str, blob: Blob, request: Request) -> dict[str, Any]:
    """A file as `info` lists it: the name, and with blobs=true size and hashes."""
    if not request.flag("blobs"):
        return {"rfilename": path}
    facts: dict[str, Any] = {"rfilename": path, "size": blob.size, "blobId": blob.oid}
    if blob.lfs:
        size = len(blob.pointer)
        facts["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": size}
    return facts


def tree(site: Site, request: Request) -> Response:
    """The files and folders below a path, a page at a time."""
    repository = site.repository(request)
    commit = commit_at(repository, request.named["revision"])
    folder = request.named.get("path", "")
    entries = entries_of(commit)
    prefix = f"{folder.rstrip('/')}/" if folder else ""
    if prefix and prefix[:-1] not in entries:
        raise missing(commit)
    below = [entry for path, entry in entries.items() if path.startswith(prefix)]
    if not request.flag("recursive"):
        below = [entry for entry in below if "/" not in entry["path"][len(prefix) :]]
    start = number(request, "cursor", 0)
    stop = start + min(site.page_size, number(request, "limit", site.page_size))
    headers: dict[str, str] = {}
    if stop < len(below):
        query = {**{k: v[0] for k, v in request.query.items()}, "cursor": str(stop)}
        path = request.path.partition("?")[0]
        headers["Link"] = f'<{site.endpoint}{path}?{urlencode(query)}>; rel="next"'
    return Response.json(below[start:stop], headers=headers)


def paths_info(site: Site, request: Request) -> Response:
    """Those of some paths that exist."""
    repository = site.repository(request)
    entries = entries_of(commit_at(repository, request.named["revision"]))
    asked = parse_qs(request.text()).get("paths", [])
    return Response.json([entries[path] for path in asked if path in entries])


def refs(site: Site, request: Request) -> Response:
    """Branches, tags and (if asked for) pull requests."""
    known = site.repository(request).refs()

    def below(prefix: str) -> list[dict[str, str]]:
        return [
            {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": sha}
            for ref, sha in known.items()
            if ref.startswith(prefix)
        ]

    answer = {"branches": below("refs/heads/"), "tags": below("refs/tags/"), "converts": []}
    if request.flag("include_prs"):
        answer["pullRequests"] = below("refs/pr/")
    return Response.json(answer)


def commits(site: Site, request: Request) -> Response:
    """The history of a revision, the latest commit first."""
    repository = site.repository(request)
    commit_at(repository, request.named["revision"])
    return Response.json(
        [
            {
                "id": commit.sha,
                "title": commit.title,
                "message": "",
                "authors": [{"user": repository.name.split("/")[0]}],
                "date": stamp(commit),
            }
            for commit in repository.history(request.named["revision"])
        ]
    )


def resolve(site: Site, request: Request) -> Response:
    """A file: itself if it is small, a redirect to the CDN if it is under LFS."""
    repository = site.readable(request)
    commit, path = commit_at(repository, request.named["revision"]), request.named["path"]
    blob = commit.files.get(path)
    if blob is None:
        raise missing(commit)
    headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{blob.etag}"'}
    if not blob.lfs:
        headers["Content-Type"] = "application/octet-stream"
        return Response(200, headers, blob.body, ranges=True)
    headers["X-Linked-Etag"] = f'"{blob.etag}"'
    headers["X-Linked-Size"] = str(blob.size)
    headers["Location"] = f"{site.cdn}/{repository.name}/{blob.sha256}/{quote(path)}"
    if site.xet is not None and blob.xet is not None:
        token = f"{site.endpoint}/api/{repository.kind}/{repository.name}/xet-read-token"
        headers["X-Xet-Hash"] = blob.xet
        headers["Link"] = f'<{token}/{commit.sha}>; rel="xet-auth"'
    return Response(302, headers)


def linked(site: Site, request: Request) -> Response:
    """A file under LFS, on the CDN, to whoever has the address. As of storage elsewhere, the ETag
    is not its sha256, and a request that carries the Hub's token is refused."""
    if "authorization" in request.headers:
        raise Refusal(400, "Only one auth mechanism allowed")
    for repository in site.repositories.values():
        if repository.name != request.named["name"]:
            continue
        blob = find_linked(repository, request.named["oid"])
        if blob is not None and blob.git_sha1:  # not known of a file that only xet holds
            headers = {"ETag": f'"{blob.git_sha1}"', "Content-Type": "application/octet-stream"}
            return Response(200, headers, blob.body, ranges=True)
    raise Refusal(403, "Access denied")


def find_linked(repository: Repository, oid: str) -> Blob | None:
    """A file under LFS by its sha256, in any commit."""
    for commit in repository.commits.values():
        for blob in commit.files.values():
            if blob.lfs and blob.sha256 == oid:
                return blob
    return None


def entries_of(commit: Commit) -> dict[str, dict[str, Any]]:
    """Files and folders as a tree lists them, by path, a folder before what is in it."""
    found: dict[str, dict[str, Any]] = {}
    for path, blob in commit.files.items():
        parts = path.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            entry = {"type": "directory", "oid": commit.sha, "size": 0, "path": folder}
            found.setdefault(folder, entry)
        found[path] = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
        if blob.lfs:
            pointer = len(blob.pointer)
            found[path]["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": pointer}
        if blob.xet is not None:
            found[path]["xetHash"] = blob.xet
    return found


def card_data(files: Mapping[str, Blob]) -> dict[str, str]:
    """The plain "key: value" lines of the front matter of README.md."""
    readme = files.get("README.md")
    text = readme.body.read(0, readme.size).decode(errors="replace") if readme else ""
    return front_matter(text)


def front_matter(text: str) -> dict[str, str]:
    """The plain "key: value" lines between the two --- at the head of a card."""
    match = FRONT_MATTER.match(text)
    lines = match[1].splitlines() if match else []
    return {m[1]: m[2] for line in lines if (m := SCALAR.fullmatch(line))}


def missing(commit: Commit) -> Refusal:
    """A path that a commit has not; the commit is named, so that the client can remember it."""
    return Refusal(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.sha})


def number(request: Request, name: str, default: int) -> int:
    """A whole number from the query; Refusal 400 if it is none."""
    try:
        return int(request.query.get(name, [str(default)])[0])
    except ValueError as error:
        raise Refusal(400, f"{name} is no number") from error


def stamp(commit: Commit) -> str:
    """A commit's date as the Hub writes it."""
    return commit.date.strftime("%Y-%m-%dT%H:%M:%S.000Z")
