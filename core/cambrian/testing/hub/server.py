"""The two servers: they read requests, have them answered, and send what faults make of it."""

from __future__ import annotations

import re
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO, cast

from cambrian.testing.hub.faults import Fault, Faults
from cambrian.testing.hub.wire import Body, Origin, Record, Response

PIECE = 64 << 10
MEMORY = 4 << 20  # of a request's body; more of it goes to a temporary file
RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Server(ThreadingHTTPServer):
    """One origin on a free port of 127.0.0.1. `answer` must not raise."""

    daemon_threads = False  # `stop` waits for them
    request_queue_size = 128

    def __init__(
        self,
        origin: Origin,
        answer: Callable[[Record, BinaryIO], Response],
        faults: Faults,
        log: list[Record],
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.origin: Origin = origin
        self.answer, self.faults, self.log = answer, faults, log
        self.closing = threading.Event()
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """http://127.0.0.1:PORT."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def stop(self) -> None:
        """Close the port and every connection; whoever waits in a fault is woken."""
        self.closing.set()
        self.shutdown()
        self._thread.join()
        for connection in list(self._connections):
            hang_up(connection)
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection."""
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection."""
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report a fault of this server; a client that went away is none."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        """Any method."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        record = Record(self.command, self.path, headers, self.server.origin)
        self.server.log.append(record)
        with tempfile.SpooledTemporaryFile(MEMORY) as content:
            # Read to its end whatever the answer: what was left would be taken for a request.
            self._receive(record, cast(BinaryIO, content))
            content.seek(0)
            fault, response = self._respond(record, cast(BinaryIO, content))
        self._wait(fault.delay)
        if fault.drop:
            hang_up(self.connection)
            self.close_connection = True
            return
        self._send(record, response, fault)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: `LoopbackHub.requests` is the log."""

    def _respond(self, record: Record, content: BinaryIO) -> tuple[Fault, Response]:
        """What to answer, and the fault that it suffers."""
        rule = self.server.faults.take(record.line)
        fault = rule.fault if rule else Fault()
        instead = fault.instead(self.path)
        response = instead or self.server.answer(record, content)
        if rule and fault.of_body_only and not response.body.size:
            self.server.faults.give_back(rule)
            return Fault(), response
        return fault, fault.spoiled(response)

    def _receive(self, record: Record, content: BinaryIO) -> None:
        """Copy the request's body."""
        if record.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                record.received += content.write(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(record.headers.get("content-length", 0))
        while left and (data := self.rfile.read(min(left, PIECE))):
            record.received += content.write(data)
            left -= len(data)
        if left:
            raise ConnectionError("the body ends early")

    def _send(self, record: Record, response: Response, fault: Fault) -> None:
        """Send the head and, but for HEAD, the body or the part of it that was asked for."""
        start, stop = 0, response.body.size
        if response.ranges and response.status == 200:
            response, start, stop = part_of(response, record)
        record.status = response.status
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(record, response.body, (start, stop), fault)

    def _send_body(self, record: Record, body: Body, part: tuple[int, int], fault: Fault) -> None:
        """Send a part of the body, in pieces that end where a fault sets in."""
        start, stop = part
        events = [start + n for n in (fault.cut_after, fault.stall_after) if n is not None]
        piece = PIECE if fault.throttle is None else max(1, min(PIECE, int(fault.throttle / 20)))
        at = start
        while True:
            if at - start == fault.stall_after:
                self._wait(fault.stall)
            if at - start == fault.cut_after:
                hang_up(self.connection)
                self.close_connection = True
                return
            if at >= stop or self.server.closing.is_set():
                return
            end = min([stop, at + piece, *(event for event in events if event > at)])
            data = body.read(at, end)
            # Counted before it is sent: the client may look as soon as it has it.
            record.sent += len(data)
            self.wfile.write(data)
            self._wait(len(data) / fault.throttle if fault.throttle else 0.0)
            at = end

    def _wait(self, seconds: float) -> None:
        """Sleep, unless the server closes."""
        if seconds > 0:
            self.server.closing.wait(seconds)


def hang_up(connection: socket.socket) -> None:
    """Close a connection under the nose of whoever uses it."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the other side was first


def part_of(response: Response, record: Record) -> tuple[Response, int, int]:
    """The part of a file that a request asks for: 206, 416 if there is none, 200 for all of it."""
    size = response.body.size
    headers = {**response.headers, "Accept-Ranges": "bytes"}
    match = RANGE.fullmatch(record.headers.get("range", ""))
    condition = record.headers.get("if-range")
    if match is None or match[1] == match[2] == "" or condition not in {None, headers.get("ETag")}:
        return replace(response, headers=headers), 0, size
    if match[1]:
        start, stop = int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)
    else:
        start, stop = max(0, size - int(match[2])), size
    if start >= stop:
        headers["Content-Range"] = f"bytes */{size}"
        return replace(response, status=416, headers=headers), 0, 0
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return replace(response, status=206, headers=headers), start, stop
