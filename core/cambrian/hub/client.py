"""Requests to the Hub, by the client's session and token; each failure is one sentence.

Answers are untrusted: what is read into memory is capped and its types are checked, and no header
decides where anything is written.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from cambrian.errors import BrokenFile, CambrianError, UsageError
from cambrian.hub.listing import Listing, RemoteFile
from cambrian.hub.location import COMMIT, Location

T = TypeVar("T")
LISTING_LIMIT = 32 << 20  # bytes; about 100,000 files
DEPTH = 8  # a file's name and its folders'; what lies deeper is not seen
CONNECT_SECONDS = 10.0
WAITS = [1.0, 2.0, 4.0, 8.0, 8.0]  # seconds before each new attempt
LONGEST_WAIT = 120.0  # seconds; a server that asks for more is not waited for
PASSING = {408, 429, 500, 502, 503, 504}
WARNED: set[str] = set()  # the addresses that were warned of in this process


class Unreachable(CambrianError):
    """The Hub did not answer, or not now. `wait` is how many seconds it asks for, if it does."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class RangeRefused(CambrianError):
    """The server has nothing at the offset that was asked for."""


class _Lfs(msgspec.Struct):
    sha256: str
    size: int


class _Sibling(msgspec.Struct, rename="camel"):
    rfilename: str
    size: int | None = None
    blob_id: str | None = None
    lfs: _Lfs | None = None


class _Model(msgspec.Struct, rename="camel"):
    sha: str
    siblings: list[_Sibling]
    gated: bool | str = False
    card_data: dict[str, Any] | None = None


def constants() -> ModuleType:
    """The client's settings, from the environment; UsageError if it cannot read them."""
    try:
        from huggingface_hub import constants as settings
    except ValueError as error:
        raise UsageError(
            f"The environment has a number that is none ({error}): HF_HUB_DOWNLOAD_TIMEOUT and "
            "HF_HUB_ETAG_TIMEOUT are whole seconds."
        ) from error
    return settings


def offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    return constants().is_offline_mode()


def endpoint() -> str:
    """Where the Hub is: HF_ENDPOINT, by default huggingface.co. UsageError if it is no address."""
    address: str = constants().ENDPOINT.rstrip("/")
    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise UsageError(
            f"HF_ENDPOINT is '{address[:100]}', which is no address; one is https://huggingface.co."
        )
    return address


def session() -> Any:
    """The client's (httpx's); UsageError where the token or a proxy cannot be what it is."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import get_session, httpx

    token = get_token() or ""
    if not (token.isascii() and token.isprintable()):
        raise UsageError(
            "The token holds characters that none has; set HF_TOKEN anew, or log in again with "
            "`hf auth login`."
        )
    try:
        return get_session()
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise UsageError(
            f"The environment names a proxy that cannot be one ({error}); look at ALL_PROXY, "
            "HTTPS_PROXY and HTTP_PROXY."
        ) from error


def warn_of_plain_http(report: Callable[[Mapping[str, Any]], None]) -> None:
    """Tell `report`, once for each address, where HF_ENDPOINT is another machine's without https,
    as {"notice"}."""
    address = endpoint()
    parts = urlsplit(address)
    if parts.scheme == "https" or loopback(parts.hostname or "") or address in WARNED:
        return
    WARNED.add(address)
    report(
        {
            "notice": f"warning: HF_ENDPOINT is {address}, which is not https: others on the way "
            "can read your token and change the answers, and a file is verified only against what "
            "they say, unless the lock or the registry has its hash"
        }
    )


def loopback(host: str) -> bool:
    """Whether a name or an address is of this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def file_url(location: Location, name: str) -> str:
    """Where one file is served."""
    revision = quote(location.revision, safe="")
    return f"{endpoint()}/{location.repo}/resolve/{revision}/{quote(name)}"


@contextmanager
def get(url: str, location: Location, headers: Mapping[str, str] | None = None) -> Generator[Any]:
    """Yield a streamed response (httpx's) with a status below 400.

    A redirect to another origin is followed without the token. Raises Unreachable for what may
    pass if one tries again, also while the body is read; UsageError or CambrianError for a refusal.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import build_hf_headers, httpx

    opened = session()
    asked = build_hf_headers(
        library_name="cambrian", headers={"accept-encoding": "identity", **(headers or {})}
    )
    timeout = httpx.Timeout(read_seconds(), connect=CONNECT_SECONDS)
    try:
        with opened.stream("GET", url, headers=asked, timeout=timeout) as response:
            if response.status_code >= 400:
                raise refusal(response.status_code, response.headers, location)
            yield response
    except OfflineModeIsEnabled as error:
        raise Unreachable(f"{location} is not in the cache, and HF_HUB_OFFLINE is set.") from error
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        reason = str(error) or type(error).__name__
        raise Unreachable(
            f"Cannot fetch {location} from {endpoint()} ({reason}). Check the network and "
            "HF_ENDPOINT, then try again."
        ) from error


def hang_up(response: Any) -> None:
    """End the connection of a response, so that whoever waits for its next byte is woken."""
    connection = response.extensions["network_stream"].get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):  # it may have ended by itself
            # Not TLS's own shutdown, which is for the thread that reads.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)


def read_seconds() -> float:
    """How long a server may say nothing: HF_HUB_DOWNLOAD_TIMEOUT, 10 by default."""
    return float(constants().HF_HUB_DOWNLOAD_TIMEOUT)


def refusal(status: int, headers: Mapping[str, str], location: Location) -> CambrianError:
    """What an answer of 400 and more means, by its status and the Hub's own code for it."""
    code, said = headers.get("x-error-code", ""), headers.get("x-error-message", "")[:200]
    repo = f"hf://{location.repo}"
    login = "log in with `hf auth login` or set HF_TOKEN"
    if said == "Invalid credentials in Authorization header":
        return CambrianError(f"The Hub refuses the token: it is wrong or has expired; {login}.")
    if status in PASSING:
        what = "asks to wait (too many requests)" if status == 429 else f"fails (status {status})"
        wait = seconds(headers.get("retry-after", ""))
        return Unreachable(f"{endpoint()} {what} on {location}. Try again later.", wait)
    if not code and status in (401, 404):
        code = "RepoNotFound"
    meanings: dict[str, CambrianError] = {
        "GatedRepo": CambrianError(
            f"{repo} is gated: accept its terms on {endpoint()}/{location.repo}, then {login}."
        ),
        "RevisionNotFound": UsageError(
            f"{repo} has no revision '{location.revision}': check the branch, tag or commit."
        ),
        "EntryNotFound": BrokenFile(
            f"{location} lists a file that it does not hold; report it to its owner."
        ),
        "RepoNotFound": UsageError(
            f"{repo} does not exist, or is private: check the name, or {login}."
        ),
    }
    if status == 416:
        return RangeRefused(f"{location}: the server has no such range of bytes.")
    what = f": {said}" if said else ""
    other = CambrianError(f"{endpoint()} refuses {location} with status {status}{what}.")
    return meanings.get(code, other)


def seconds(text: str) -> float | None:
    """A Retry-After in seconds; a date counts as none."""
    return float(text) if text.isdecimal() and len(text) < 9 else None


def reason(error: CambrianError) -> str:
    """The first sentence of a message: what happened, without what to do about it."""
    return str(error).partition(". ")[0]


def patiently(
    attempt: Callable[[], T],
    report: Callable[[Mapping[str, Any]], None] = lambda event: None,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Call until it no longer raises Unreachable, at most as often as there are `WAITS`.

    `report` is told why one waits, as {"notice"}.
    """
    for standard in WAITS:
        try:
            return attempt()
        except Unreachable as error:
            wait = error.wait or standard
            if offline() or wait > LONGEST_WAIT:
                raise
            report({"notice": f"{reason(error)}; trying again in {wait:.0f} s"})
            sleep(wait)
    return attempt()


def read(
    url: str, location: Location, limit: int, headers: Mapping[str, str] | None = None
) -> bytes:
    """A whole answer of at most `limit` bytes; BrokenFile for more."""
    with get(url, location, headers) as response:
        data = bytearray()
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) > limit:
                raise BrokenFile(
                    f"{endpoint()} answers with more than {limit} bytes where less was asked for; "
                    f"nothing of {location} was used."
                )
        return bytes(data)


def list_files(location: Location) -> Listing:
    """Ask the Hub what is at a revision: one request. Raises as `get`, and BrokenFile for an
    answer that makes no sense."""
    revision = quote(location.revision, safe="")
    url = f"{endpoint()}/api/models/{location.repo}/revision/{revision}?blobs=true"
    data = read(url, location, LISTING_LIMIT)
    try:
        answer = msgspec.json.decode(data, type=_Model)
        files = [remote_file(sibling) for sibling in answer.siblings if plain(sibling.rfilename)]
        if not COMMIT.fullmatch(answer.sha):
            raise ValueError(f"'{answer.sha[:50]}' is no commit")
        if location.pinned and answer.sha != location.revision:
            raise ValueError(f"it speaks of commit {answer.sha}")
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BrokenFile(
            f"{endpoint()} describes {location} in a way that makes no sense ({error}); is "
            "HF_ENDPOINT a Hub?"
        ) from error
    known = (answer.card_data or {}).get("license")
    return Listing(
        Location(location.repo, answer.sha),
        {file.name: file for file in sorted(files, key=lambda file: file.name)},
        license=known if isinstance(known, str) else "",
        gated=bool(answer.gated),
    )


def plain(name: str) -> bool:
    """Whether a name, with / between its folders, is fit to be one on a disk, and not hidden."""
    parts = name.split("/")
    return (
        len(parts) <= DEPTH
        and all(part and not part.startswith(".") for part in parts)
        and name.isprintable()
        and not set(name) & set("\\:")
    )


def remote_file(sibling: _Sibling) -> RemoteFile:
    """One line of the Hub's listing; ValueError if it lacks a size or a hash."""
    size = sibling.lfs.size if sibling.lfs is not None else sibling.size
    digest = sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id
    form = 64 if sibling.lfs is not None else 40
    if size is None or size < 0 or digest is None or len(digest) != form:
        raise ValueError(f"{sibling.rfilename[:100]} has no size or hash")
    if set(digest) - set("0123456789abcdef"):
        raise ValueError(f"the hash of {sibling.rfilename[:100]} is none")
    if sibling.lfs is not None:
        return RemoteFile(sibling.rfilename, size, sha256=digest)
    return RemoteFile(sibling.rfilename, size, git_sha1=digest)
