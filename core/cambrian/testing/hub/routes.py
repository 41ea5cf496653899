"""Which request is answered by what."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import BinaryIO
from urllib.parse import parse_qs, unquote

from cambrian.testing.hub import reading, writing, xet
from cambrian.testing.hub.site import Site
from cambrian.testing.hub.wire import Origin, Record, Refusal, Request, Response

Answer = Callable[[Site, Request], Response]

NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
API = rf"/api/(?P<kind>models|datasets|spaces)/{NAME}"
PAGE = rf"/(?:(?P<kind>datasets|spaces)/)?{NAME}"
REVISION = r"(?P<revision>[^/]+)"
READ = "GET HEAD"

ROUTES: tuple[tuple[Origin, str, str, Answer], ...] = (
    ("cdn", READ, rf"/{NAME}/(?P<oid>[0-9a-f]{{64}})/.+", reading.linked),
    ("hub", READ, r"/api/whoami-v2", reading.whoami),
    ("hub", READ, r"/api/agent-harnesses", reading.harnesses),
    ("hub", READ, rf"{API}(?:/revision/{REVISION})?", reading.info),
    ("hub", READ, rf"{API}/tree/{REVISION}(?:/(?P<path>.*))?", reading.tree),
    ("hub", "POST", rf"{API}/paths-info/{REVISION}", reading.paths_info),
    ("hub", READ, rf"{API}/refs", reading.refs),
    ("hub", READ, rf"{API}/commits/{REVISION}", reading.commits),
    ("hub", READ, rf"{API}/auth-check", reading.may_read),
    ("hub", READ, rf"{API}/auth-check/write", reading.may_write),
    ("hub", READ, rf"{PAGE}/resolve/{REVISION}/(?P<path>.+)", reading.resolve),
    ("hub", READ, rf"{API}/xet-read-token/{REVISION}", xet.read_token),
    ("hub", READ, rf"{API}/xet-write-token/{REVISION}", xet.write_token),
    ("hub", "POST", r"/api/repos/create", writing.create),
    ("hub", "DELETE", r"/api/repos/delete", writing.delete),
    ("hub", "POST", r"/api/validate-yaml", writing.validate),
    ("hub", "POST", rf"{API}/preupload/{REVISION}", writing.preupload),
    ("hub", "POST", rf"{PAGE}\.git/info/lfs/objects/batch", writing.batch),
    ("hub", "POST", rf"{PAGE}\.git/info/lfs/objects/verify", writing.verify),
    ("cdn", "PUT", r"/upload/(?P<oid>[0-9a-f]{64})", writing.upload),
    ("hub", "POST", rf"{API}/commit/{REVISION}", writing.commit),
    ("hub", "POST", rf"{API}/tag/{REVISION}", writing.tag),
    ("hub", "DELETE", rf"{API}/tag/{REVISION}", writing.untag),
    ("hub", "POST", rf"{API}/branch/{REVISION}", writing.branch),
    ("hub", "DELETE", rf"{API}/branch/{REVISION}", writing.unbranch),
)
TABLE = tuple(
    (origin, methods.split(), re.compile(path), answer) for origin, methods, path, answer in ROUTES
)


def answer(site: Site, record: Record, content: BinaryIO) -> Response:
    """Answer a request. What goes wrong unexpectedly is a 400, which the client does not repeat."""
    path, _, query = record.path.partition("?")
    for origin, methods, pattern, route in TABLE:
        match = pattern.fullmatch(path) if origin == record.origin else None
        if match is None or record.method not in methods:
            continue
        named = {key: unquote(value) for key, value in match.groupdict().items() if value}
        request = Request(
            record.method, record.path, parse_qs(query), record.headers, content, named
        )
        try:
            with site.lock:
                return route(site, request)
        except Refusal as refusal:
            return refusal.response()
        except Exception as error:
            return Refusal(400, f"The loopback Hub failed: {error!r}").response()
    return Refusal(404, f"The loopback Hub has no {record.line}").response()
