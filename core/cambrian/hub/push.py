"""Files into a repository on the Hub: one commit, of what has changed and of nothing else.

The client (huggingface_hub) sends the bytes, by git-LFS or xet as it sees fit. The commit names the
head it was made for, so that another push in between is refused and not overwritten.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cambrian.errors import BrokenFile, CambrianError, UsageError
from cambrian.hub import client
from cambrian.hub.listing import Digest, RemoteFile
from cambrian.hub.location import COMMIT, Location

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CHUNK = 1 << 20
PATIENCE = 6  # a commit takes the Hub longer than a part of a file
NO_BRANCH = "refs/"  # so begin pull requests and what else the Hub makes itself
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
Report = Callable[[str], None]


@dataclass(frozen=True)
class Upload:
    """A file for the repository: its name there (with /), and its content or where that lies."""

    name: str
    source: Path | bytes
    size: int


@dataclass(frozen=True, kw_only=True)
class Order:
    """Where to push to, and how. A branch that does not exist is made. `replaced` are names that
    tell what the model is: one that is there and not among the files is deleted."""

    location: Location
    message: str
    replaced: frozenset[str] = frozenset()
    private: bool = False
    pull_request: bool = False


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What became of it: the commit that holds the files, whether it is new, the names that were
    sent, those that were in the repository and stay, those that were deleted, and the page of the
    pull request, if any."""

    location: Location
    changed: bool
    sent: tuple[str, ...]
    stays: tuple[str, ...]
    deleted: tuple[str, ...] = ()
    pull_request: str | None = None


@dataclass(frozen=True)
class Head:
    """What a branch is at: its commit ("" for none yet), and what is there, by name. `made` tells
    that the repository did not exist before."""

    commit: str
    files: Mapping[str, RemoteFile]
    private: bool = False
    made: bool = False


def push(order: Order, files: Sequence[Upload], report: Report = lambda line: None) -> Pushed:
    """Bring the files into the repository, which is made if it does not exist.

    Raises UsageError for what cannot be pushed to, CambrianError for every refusal and failure;
    the branch then is as it was.
    """
    client.endpoint()  # so that a wrong setting is told before the client is imported
    require_possible(order)
    location = order.location
    client.warn_of_plain_http(lambda event: report(event["notice"]))
    with translated(location), limited_silence():
        api = hub_api()
        head = prepare(api, order, report)
        changed = [file for file in files if not same(file, head.files.get(file.name))]
        others = head.files.keys() - {file.name for file in files} - {".gitattributes"}
        deleted = tuple(sorted(others & order.replaced))
        stays = tuple(sorted(others - order.replaced))
        if not changed and not deleted:
            there = Location(location.repo, head.commit)
            return Pushed(location=there, changed=False, sent=(), stays=stays)
        if deleted:
            report(f"deletes what is of the model before: {', '.join(deleted)}")
        total = sum(file.size for file in changed)
        report(f"sending {len(changed)} of {len(files)} files, {total:,} bytes")
        with told_of_leftovers(head, location, report):
            commit, page = send(api, order, (changed, deleted), head.commit, report)
        return Pushed(
            location=Location(location.repo, commit),
            changed=True,
            sent=tuple(file.name for file in changed),
            stays=stays,
            deleted=deleted,
            pull_request=page,
        )


@contextmanager
def told_of_leftovers(head: Head, location: Location, report: Report) -> Generator[None]:
    """Say that a repository was made for nothing, if it was."""
    try:
        yield
    except BaseException:
        if head.made:
            report(f"hf://{location.repo} was made and is empty; push again, or delete it")
        raise


def require_possible(order: Order) -> None:
    """UsageError or CambrianError for what fails without asking the Hub."""
    from huggingface_hub import get_token

    location = order.location
    if location.pinned:
        raise UsageError(f"{location} is a commit, which never changes; name a branch.")
    if order.pull_request and location.revision != "main":
        raise UsageError("A pull request goes to main; leave out the branch, or --pull-request.")
    if not order.message.strip():
        raise UsageError("The commit's message is empty; give --message some words.")
    if client.offline():
        raise CambrianError(f"Cannot push to {location}: HF_HUB_OFFLINE is set; unset it.")
    if get_token() is None:
        raise CambrianError(f"Cannot push to {location}: there is no token; {LOGIN}.")


def hub_api() -> HfApi:
    """The client, for the Hub that HF_ENDPOINT names."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=client.endpoint(), library_name="cambrian")


def prepare(api: HfApi, order: Order, report: Report) -> Head:
    """Make what is missing, the repository or the branch, and look at the head."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    location = order.location
    try:
        head = head_of(api, Location(location.repo))
    except RepositoryNotFoundError:
        if order.pull_request or location.revision.startswith(NO_BRANCH):
            raise
        kind = "private" if order.private else "public"
        report(f"creating hf://{location.repo} ({kind})")
        api.create_repo(location.repo, private=order.private)
        head = replace(head_of(api, Location(location.repo)), made=True)
    else:
        if order.private and not head.private:
            raise UsageError(
                f"hf://{location.repo} exists and is public, so --private cannot hold; make it "
                "private on its page, or name another."
            )
    if location.revision == "main":
        return head
    try:
        return replace(head_of(api, location), made=head.made)
    except RevisionNotFoundError as error:
        if location.revision.startswith(NO_BRANCH):
            raise UsageError(f"{location} does not exist, and is no branch to be made.") from error
        report(f"creating the branch {location.revision}")
        api.create_branch(location.repo, branch=location.revision)
        return replace(head_of(api, location), made=head.made)


def head_of(api: HfApi, location: Location) -> Head:
    """Ask what a branch is at. The names and hashes are used for comparison only."""
    info = api.model_info(location.repo, revision=location.revision, files_metadata=True)
    commit = info.sha or ""
    if commit and not COMMIT.fullmatch(commit):
        raise BrokenFile(f"{client.endpoint()} names '{commit[:50]}' as {location}'s commit.")
    files: dict[str, RemoteFile] = {}
    for sibling in info.siblings or ():
        name, lfs = sibling.rfilename, sibling.lfs
        sha256 = lfs.sha256 if lfs is not None else None
        sha1 = sibling.blob_id if lfs is None else None
        files[name] = RemoteFile(name, sibling.size or 0, sha256, sha1)
    return Head(commit, files, private=bool(info.private))


def same(file: Upload, there: RemoteFile | None) -> bool:
    """Whether the repository holds this very content."""
    if there is None:
        return False
    digest = Digest(file.size)
    if isinstance(file.source, bytes):
        digest.update(file.source)
        return digest.fits(there)
    with file.source.open("rb") as stream:
        while data := stream.read(CHUNK):
            digest.update(data)
    return digest.fits(there)


def send(
    api: HfApi,
    order: Order,
    change: tuple[Sequence[Upload], Sequence[str]],
    parent: str,
    report: Report,
) -> tuple[str, str | None]:
    """Commit a change, files to add and names to delete: the commit, and the pull request's page if
    one was asked for."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations = [
        *[CommitOperationAdd(file.name, file.source) for file in change[0]],
        *[CommitOperationDelete(name, is_folder=False) for name in change[1]],
    ]
    with warnings.catch_warnings(record=True) as said:  # what the Hub thinks of the card
        warnings.simplefilter("always")
        done = api.create_commit(
            order.location.repo,
            operations,
            commit_message=order.message,
            revision=order.location.revision,
            create_pr=order.pull_request,
            parent_commit=parent or None,
        )
    for warning in said:
        if issubclass(warning.category, UserWarning):
            report(" ".join(str(warning.message).split()))
    if not COMMIT.fullmatch(done.oid):
        raise BrokenFile(f"{client.endpoint()} names '{done.oid[:50]}' as the new commit.")
    return done.oid, done.pr_url


@contextmanager
def limited_silence() -> Generator[None]:
    """Have the client, which waits for ever, give up on a server that says nothing for so long."""
    from huggingface_hub.utils import httpx

    session = client.session()
    before = session.timeout
    session.timeout = httpx.Timeout(
        PATIENCE * client.read_seconds(), connect=client.CONNECT_SECONDS
    )
    try:
        yield
    finally:
        session.timeout = before


@contextmanager
def translated(location: Location) -> Generator[None]:
    """Turn every exception of the client's into one sentence."""
    from huggingface_hub import errors
    from huggingface_hub.constants import HF_HUB_DISABLE_XET
    from huggingface_hub.utils import httpx

    try:
        yield
    except CambrianError:
        raise
    except KeyboardInterrupt as error:
        error.add_note(
            "the commit is made as a whole or not at all; push again, and what has been sent is "
            "not sent twice"
        )
        raise
    except errors.HfHubHTTPError as error:
        refuse(error, location)
    except errors.OfflineModeIsEnabled as error:
        raise CambrianError(f"Cannot push to {location}: HF_HUB_OFFLINE is set.") from error
    except errors.LocalTokenNotFoundError as error:
        raise CambrianError(f"Cannot push to {location}: there is no token; {LOGIN}.") from error
    except errors.HFValidationError as error:
        raise UsageError(f"'{location.repo}' is no name of a repository (owner/name).") from error
    except httpx.HTTPError as error:
        raise CambrianError(
            f"Cannot push to {location}: {client.endpoint()} does not answer "
            f"({reason(error)}). Check the network and HF_ENDPOINT, then push again."
        ) from error
    except ValueError as error:  # of the card, as a rule
        raise CambrianError(
            f"The Hub does not take this for {location}: {reason(error)} Nothing was committed."
        ) from error
    except (RuntimeError, ConnectionError) as error:  # of xet; it names no class of its own
        xet = "" if HF_HUB_DISABLE_XET else "; on a server without xet, set HF_HUB_DISABLE_XET=1"
        raise CambrianError(
            f"Sending to {location} failed ({reason(error)}); nothing was committed. Push again"
            f"{xet}."
        ) from error


def refuse(error: Any, location: Location) -> NoReturn:
    """Raise what an answer of 400 and more means to one who pushes."""
    status, repo = error.response.status_code, f"hf://{location.repo}"
    said = " ".join((error.server_message or "").split())[:200]
    if status == 401 and "Invalid credentials" not in said:
        raise CambrianError(f"The Hub does not let this token write to {repo}; {LOGIN}.") from error
    meanings = {
        403: f"You may not write to {repo} ({said or 'forbidden'}); use a token with the right to "
        "write there, or open a --pull-request.",
        404: f"{repo} does not exist, or is private: check the name, or {LOGIN}.",
        409: f"{repo} is in conflict with what is there ({said or 'conflict'}); push again.",
        412: f"{location} changed while this was being pushed, so nothing was committed; look at "
        "what came, then push again.",
        413: f"The Hub finds this too large for {repo} ({said or 'no reason given'}).",
    }
    if status in meanings:
        raise CambrianError(meanings[status]) from error
    raise client.refusal(status, error.response.headers, location) from error


def reason(error: BaseException) -> str:
    """The innermost cause in one line; of an answer the status alone, since the address of an
    upload is signed, and not for others."""
    while error.__cause__ is not None:
        error = error.__cause__
    if (response := getattr(error, "response", None)) is not None:
        return f"status {response.status_code}"
    return " ".join(str(error).split())[:300] or type(error).__name__
