"""The Hub's answers to those who write: repositories, uploads, commits, names of commits."""

from __future__ import annotations

import base64
import binascii
import json
import re
import shutil
from collections.abc import Mapping
from typing import Any

from cambrian.testing.hub import xet
from cambrian.testing.hub.reading import find_linked, front_matter, missing
from cambrian.testing.hub.repository import Blob, Commit, Repository, StaleParent, blob_of
from cambrian.testing.hub.site import Site, commit_at
from cambrian.testing.hub.wire import Refusal, Request, Response

LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
NAME = re.compile(r"[\w.-]+")
KINDS = ("models", "datasets", "spaces")


def create(site: Site, request: Request) -> Response:
    """A new repository of the user's or an organisation's."""
    asked = request.json()
    name = full_name(site, request, asked)
    site.writer(request, name)
    private = asked.get("visibility") == "private" or asked.get("private") is True
    repository = site.add(name, kind=kind_asked(asked), private=private)
    return Response.json({"url": site.endpoint + repository.url_path, "name": name})


def delete(site: Site, request: Request) -> Response:
    """The end of a repository."""
    asked = request.json()
    name = full_name(site, request, asked)
    site.writer(request, name)
    if site.repositories.pop((kind_asked(asked), name), None) is None:
        raise Refusal(404, "Repository not found", "RepoNotFound")
    return Response.json({})


def full_name(site: Site, request: Request, asked: Mapping[str, Any]) -> str:
    """The "owner/name" that is asked for; the owner is the user if none is."""
    name = asked.get("name")
    owner = asked.get("organization") or site.writer(request, None).name
    for part in (owner, name):
        if not isinstance(part, str) or not NAME.fullmatch(part):
            raise Refusal(400, "Invalid repository name")
    return f"{owner}/{name}"


def kind_asked(asked: Mapping[str, Any]) -> str:
    """ "models" for "model", or none; Refusal 400 for what the Hub has not."""
    kind = f"{asked.get('type') or 'model'}s"
    if kind not in KINDS:
        raise Refusal(400, "Invalid repository type")
    return kind


def validate(site: Site, request: Request) -> Response:
    """What the Hub says of a card. Of all its rules this one knows: a licence is one word."""
    card = front_matter(str(request.json().get("content", "")))
    if LICENSE.fullmatch(card.get("license", "none")):
        return Response.json({"errors": [], "warnings": []})
    message = '"license" must be one of the licences that the Hub knows'
    raise Refusal(400, message, extra={"errors": [{"message": message}], "warnings": []})


def preupload(site: Site, request: Request) -> Response:
    """How each file is to be sent, and the hash of what is there now."""
    repository = site.writable(request, proposal=request.flag("create_pr"))
    commit = commit_at(repository, request.named["revision"])
    answers: list[dict[str, Any]] = []
    for file in objects_of(request.json(), "files", {"path": str, "size": int}):
        blob = commit.files.get(file["path"])
        answers.append(
            {
                "path": file["path"],
                "uploadMode": "lfs" if site.is_lfs(file["path"], file["size"]) else "regular",
                "shouldIgnore": False,
                "oid": blob.etag if blob else None,
            }
        )
    return Response.json({"files": answers, "commitOid": commit.sha})


def batch(site: Site, request: Request) -> Response:
    """Where to upload the files under LFS that the Hub does not have."""
    repository = site.writable(request, proposal=True)
    answers: list[dict[str, Any]] = []
    for item in objects_of(request.json(), "objects", {"oid": str, "size": int}):
        answer: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
        if find_object(site, repository, item["oid"]) is None:
            verify = f"{site.endpoint}{repository.url_path}.git/info/lfs/objects/verify"
            upload = f"{site.cdn}/upload/{item['oid']}"
            answer["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        answers.append(answer)
    return Response.json({"transfer": "basic", "objects": answers})


def upload(site: Site, request: Request) -> Response:
    """The bytes of a file under LFS, on the CDN, from whoever has the address."""
    if "authorization" in request.headers:
        raise Refusal(400, "Only one auth mechanism allowed")
    oid = request.named["oid"]
    path = site.folder / oid
    if oid not in site.objects:
        with path.open("wb") as file:
            shutil.copyfileobj(request.content, file)
        blob = blob_of(path, lfs=True)
        if blob.sha256 != oid:
            raise Refusal(400, "The content has another sha256")
        site.objects[oid] = blob
    return Response(200, {"ETag": f'"{site.objects[oid].git_sha1}"'})


def verify(site: Site, request: Request) -> Response:
    """Whether an upload arrived whole."""
    repository = site.writable(request, proposal=True)
    asked = request.json()
    blob = find_object(site, repository, str(asked.get("oid")))
    if blob is None or blob.size != asked.get("size"):
        raise Refusal(404, "Object not found")
    return Response.json({})


def commit(site: Site, request: Request) -> Response:
    """A commit to a branch, or to a new pull request: 412 if the branch has moved on."""
    proposal, revision = request.flag("create_pr"), request.named["revision"]
    repository = site.writable(request, proposal=proposal)
    current = commit_at(repository, revision)
    header: Mapping[str, Any] = {}
    changes: dict[str, Blob | None] = {}
    for key, value in lines_of(request):
        if key == "header":
            header = value
        else:
            changes.update(change(site, repository, current, key, value))
    title, parent = header.get("summary"), header.get("parentCommit")
    if not title:
        raise Refusal(400, "A commit needs a summary")
    try:
        if not proposal:
            sha = repository.commit_blobs(changes, revision, parent, title)
            return Response.json(told(site, repository, sha))
        number = repository.pull_request(changes, revision, parent, title)
    except StaleParent as error:
        message = "A commit has happened since. Please refresh and try again."
        raise Refusal(412, message) from error
    except KeyError as error:
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound") from error
    page = f"{site.endpoint}{repository.url_path}/discussions/{number}"
    answer = told(site, repository, repository.pulls[number])
    return Response.json({**answer, "pullRequestUrl": page})


def told(site: Site, repository: Repository, sha: str) -> dict[str, Any]:
    """What the author of a commit is told."""
    url = f"{site.endpoint}{repository.url_path}/commit/{sha}"
    return {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""}


def lines_of(request: Request) -> list[tuple[str, dict[str, Any]]]:
    """The lines of a commit: what to do, and with what; Refusal 400 if they are not that."""
    found: list[tuple[str, dict[str, Any]]] = []
    for line in request.text().splitlines():
        try:
            item = json.loads(line)
            key, value = item["key"], item["value"]
        except (ValueError, TypeError, KeyError) as error:
            raise Refusal(400, "A line of the commit is malformed") from error
        if not isinstance(key, str) or not isinstance(value, dict):
            raise Refusal(400, "A line of the commit is malformed")
        found.append((key, value))
    return found


def change(
    site: Site, repository: Repository, current: Commit, key: str, value: dict[str, Any]
) -> dict[str, Blob | None]:
    """What one line of a commit does to the tree."""
    path = value.get("path")
    if not isinstance(path, str):
        raise Refusal(400, "A line of the commit has no path")
    if key == "deletedFolder":
        prefix = f"{path.rstrip('/')}/"
        gone = [name for name in current.files if name.startswith(prefix)]
    else:
        gone = [path] if path in current.files else []
    if key.startswith("deleted"):
        if not gone:
            raise missing(current)
        return dict.fromkeys(gone)
    if {"", ".", ".."} & set(path.split("/")) or "\\" in path:
        raise Refusal(400, f"Invalid path: {path}")
    return {path: written(site, repository, key, value)}


def written(site: Site, repository: Repository, key: str, value: dict[str, Any]) -> Blob:
    """The content that a line of a commit brings, or has brought by upload."""
    if key == "file":
        try:
            return blob_of(base64.b64decode(value.get("content", ""), validate=True), lfs=False)
        except (binascii.Error, TypeError, ValueError) as error:
            raise Refusal(400, "A content is not base64") from error
    if key != "lfsFile":
        raise Refusal(400, f"The loopback Hub does not know the operation {key}")
    blob = find_object(site, repository, str(value.get("oid")))
    if blob is None or value.get("size", blob.size) != blob.size:
        raise Refusal(400, "LFS pointer pointed to a file that does not exist")
    return blob


def find_object(site: Site, repository: Repository, oid: str) -> Blob | None:
    """A file under LFS by its sha256: one in the repository, uploaded, or stored by xet."""
    blob = find_linked(repository, oid) or site.objects.get(oid)
    if blob is None and site.xet is not None:
        blob = xet.find_stored(site.xet, oid)
    return blob


def tag(site: Site, request: Request) -> Response:
    """A new tag: 409 if there is one of its name."""
    repository = site.writable(request)
    target = commit_at(repository, request.named["revision"])
    name = request.json().get("tag")
    if not isinstance(name, str) or not name:
        raise Refusal(400, "A tag needs a name")
    if name in repository.tags:
        raise Refusal(409, f"Tag {name} already exists")
    repository.tag(name, target.sha)
    return Response.json({})


def untag(site: Site, request: Request) -> Response:
    """The end of a tag."""
    return forgotten(site.writable(request).tags, request.named["revision"])


def branch(site: Site, request: Request) -> Response:
    """A new branch, at main if no other start is given: 409 if there is one of its name."""
    repository = site.writable(request)
    start = commit_at(repository, str(request.json().get("startingPoint") or "main"))
    name = request.named["revision"]
    if name in repository.branches:
        raise Refusal(409, f"Branch {name} already exists")
    repository.branch(name, start.sha)
    return Response.json({})


def unbranch(site: Site, request: Request) -> Response:
    """The end of a branch; main stays."""
    name = request.named["revision"]
    if name == "main":
        raise Refusal(403, "The default branch cannot be deleted")
    return forgotten(site.writable(request).branches, name)


def forgotten(names: dict[str, str], name: str) -> Response:
    """Remove a name of a commit; Refusal 404 if there is none."""
    if names.pop(name, None) is None:
        raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return Response.json({})


def objects_of(
    asked: Mapping[str, Any], key: str, fields: Mapping[str, type]
) -> list[dict[str, Any]]:
    """A list of objects that have the given fields; Refusal 400 if it is anything else."""
    items = asked.get(key)
    if not isinstance(items, list) or not all(
        isinstance(item, dict) and all(isinstance(item.get(f), t) for f, t in fields.items())
        for item in items
    ):
        raise Refusal(400, f"{key} is malformed")
    return items
