"""Faults to order: what a network, a broken server or a hostile one does to an answer."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cambrian.testing.hub.wire import Body, Response


@dataclass(frozen=True)
class Fault:
    """What to do to an answer; several together if several are set.

    `status` answers so at once, nothing being done, with `retry_after` seconds if given.
    `headers` replaces headers, and removes those that are None.
    `body` replaces the body; `spaces` does by so many spaces.
    `short` cuts the body to so many bytes, and announces no more.
    `flip` inverts the byte at this offset of the whole file.
    `cut_after` closes the connection after so many bytes of the body; `drop` in place of an answer
    (but what was asked for is done).
    `delay` waits so many seconds before the answer, `stall` after `stall_after` bytes of the body.
    `throttle` sends at most so many bytes a second.
    `ignore_range` sends the whole file whatever part was asked for.
    `redirect_loop` redirects to the same address.

    A fault of the body alone leaves answers without one (to HEAD, redirects) as they are.
    """

    status: int | None = None
    retry_after: float | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    body: bytes | None = None
    spaces: int | None = None
    short: int | None = None
    flip: int | None = None
    cut_after: int | None = None
    drop: bool = False
    delay: float = 0.0
    stall: float = 0.0
    stall_after: int = 0
    throttle: float | None = None
    ignore_range: bool = False
    redirect_loop: bool = False

    @property
    def of_body_only(self) -> bool:
        """Whether there is nothing that an answer without a body could show."""
        others = self.status, self.headers, self.drop, self.delay, self.redirect_loop
        return not any(others)

    def instead(self, path: str) -> Response | None:
        """The answer that is given without asking the server, if there is one."""
        if self.redirect_loop:
            return Response(302, {"Location": path})
        if self.status is None:
            return None
        wait = {} if self.retry_after is None else {"Retry-After": f"{self.retry_after:g}"}
        return Response.json({"error": "a fault to order"}, self.status, wait)

    def spoiled(self, response: Response) -> Response:
        """The answer with what this fault does to headers and body."""
        body = response.body if self.body is None else Body.of(self.body)
        body = body if self.spaces is None else Body.spaces(self.spaces)
        if self.short is not None:
            body = Body(min(self.short, body.size), body.read)
        if self.flip is not None:
            body = flipped(body, self.flip)
        named = {name.lower() for name in self.headers}
        headers = {k: v for k, v in response.headers.items() if k.lower() not in named}
        headers.update({k: v for k, v in self.headers.items() if v is not None})
        ranges = response.ranges and not self.ignore_range
        return replace(response, headers=headers, body=body, ranges=ranges)


def flipped(body: Body, offset: int) -> Body:
    """The body with one byte inverted."""

    def read(start: int, stop: int) -> bytes:
        data = bytearray(body.read(start, stop))
        if start <= offset < start + len(data):
            data[offset - start] ^= 0xFF
        return bytes(data)

    return Body(body.size, read)


@dataclass
class Rule:
    """A fault for requests whose line matches, for as many of them as are left (None: all)."""

    pattern: re.Pattern[str]
    fault: Fault
    left: int | None


class Faults:
    """The faults in force, in the order they were given; thread-safe."""

    def __init__(self) -> None:
        self._rules: list[Rule] = []
        self._lock = threading.Lock()

    def add(self, pattern: str, fault: Fault, times: int | None) -> None:
        """Put a fault in force, behind those that are."""
        with self._lock:
            self._rules.append(Rule(re.compile(pattern), fault, times))

    def clear(self) -> None:
        """Lift every fault."""
        with self._lock:
            self._rules.clear()

    def take(self, line: str) -> Rule | None:
        """The first rule that matches; one use of it is spent. To HEAD, none of the body alone."""
        head = line.startswith("HEAD ")
        with self._lock:
            for rule in self._rules:
                if rule.left == 0 or (head and rule.fault.of_body_only):
                    continue
                if rule.pattern.search(line):
                    rule.left = None if rule.left is None else rule.left - 1
                    return rule
        return None

    def give_back(self, rule: Rule) -> None:
        """Return a use that had nothing to act on."""
        with self._lock:
            rule.left = None if rule.left is None else rule.left + 1
