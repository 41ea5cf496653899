"""What crosses the wire: bodies that are read in pieces, requests, responses and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

Origin = Literal["hub", "cdn"]

BODY_LIMIT = 64 << 20  # bytes of a request that is parsed as a whole


@dataclass(frozen=True)
class Body:
    """`size` bytes that `read(start, stop)` returns piece by piece."""

    size: int
    read: Callable[[int, int], bytes]

    @classmethod
    def of(cls, data: bytes) -> Body:
        """Bytes in memory."""
        return cls(len(data), lambda start, stop: data[start:stop])

    @classmethod
    def file(cls, path: Path) -> Body:
        """A file, which must stay as it is."""

        def read(start: int, stop: int) -> bytes:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(stop - start)

        return cls(path.stat().st_size, read)

    @classmethod
    def spaces(cls, size: int) -> Body:
        """As many spaces as wanted, of which memory holds a piece at a time."""
        return cls(size, lambda start, stop: b" " * (stop - start))


NOTHING = Body.of(b"")


@dataclass
class Record:
    """A request as it came, and what was answered.

    `path` is as sent, with the query; `headers` have lower-case names; `received` and `sent` are
    the bytes of the two bodies. `status` is 0 until the answer begins, and stays so if none does.
    """

    method: str
    path: str
    headers: dict[str, str]
    origin: Origin
    received: int = 0
    status: int = 0
    sent: int = 0

    @property
    def line(self) -> str:
        """What patterns search: "GET hub /api/models/owner/name"."""
        return f"{self.method} {self.origin} {self.path}"


@dataclass(frozen=True)
class Request:
    """A request to be answered: `named` holds the unquoted parts of the path."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    content: BinaryIO
    named: Mapping[str, str]

    def text(self) -> str:
        """The body as UTF-8; Refusal 413 if it is too large, 400 if it is no text."""
        data = self.content.read(BODY_LIMIT + 1)
        if len(data) > BODY_LIMIT:
            raise Refusal(413, "The body is too large.")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise Refusal(400, "The body is not UTF-8.") from error

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; Refusal 400 if it is none."""
        try:
            value = json.loads(self.text())
        except ValueError as error:
            raise Refusal(400, "The body is not JSON.") from error
        if not isinstance(value, dict):
            raise Refusal(400, "The body is no JSON object.")
        return value

    def flag(self, name: str) -> bool:
        """Whether the query says yes."""
        return self.query.get(name, [""])[0].lower() in {"1", "true"}


@dataclass(frozen=True)
class Response:
    """An answer; `ranges` says whether parts of its body may be asked for."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: Body = NOTHING
    ranges: bool = False

    @classmethod
    def json(
        cls, value: Any, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Response:
        """A value as JSON."""
        kind = {"Content-Type": "application/json; charset=utf-8"}
        return cls(status, {**kind, **(headers or {})}, Body.of(json.dumps(value).encode()))


class Refusal(Exception):
    """An error answer, as the Hub words it: a message, and a code where the client needs one."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str = "",
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers, self.extra = headers or {}, extra or {}

    def response(self) -> Response:
        """The refusal in headers, which the client reads, and in JSON, which people do."""
        message = " ".join(self.message.split()).encode().decode("latin-1")
        headers = {**self.headers, "X-Error-Message": message}
        if self.code:
            headers["X-Error-Code"] = self.code
        return Response.json({"error": self.message, **self.extra}, self.status, headers)
