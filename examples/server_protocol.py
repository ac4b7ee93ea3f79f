"""The HTTP protocol of server.py: uvicorn's, with limits on the time and the head of a request."""

from __future__ import annotations

import asyncio
from collections import Counter, deque

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MOST_HEAD = 64 << 10  # bytes that a head or trailer may go on for: the parser copies them with each new piece


class LimitedProtocol(HttpToolsProtocol):
    """Answers 408 to a request that does not arrive, head and body, within a time.

    The time counts from its first byte, from the connection or from the answer before, whichever is last. An
    idle connection is closed without an answer.

    Attributes:
        seconds: The time.
        responses: The answers by status, which counts them.
        unanswered: The requests whose heads have arrived.
        head: Bytes that have arrived since the last piece of a body, or the beginning or end of a head.
    """

    seconds: float
    responses: Counter[int]
    unanswered: deque[RequestResponseCycle]
    head = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time."""
        super().connection_made(transport)
        self.unanswered = deque()
        self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every request that nobody listens; uvicorn tells the last one alone."""
        for request in self.unanswered:
            request.disconnected = True
        super().connection_lost(exc)
        self._stop()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection for the answers to a client that closed its sending side alone."""
        if self._is_answering():
            self.cycle.keep_alive = False  # of its last request
        return self._is_answering()

    def data_received(self, data: bytes) -> None:
        """Refuse a head that is too long."""
        self.head += len(data)
        super().data_received(data)
        if self.head > MOST_HEAD and not self.transport.is_closing():
            self.send_400_response("The head of the request is too long.")

    def on_message_begin(self) -> None:
        """Start the time of a request."""
        super().on_message_begin()
        self.head = 0
        self._start()

    def on_headers_complete(self) -> None:
        """Note the request as unanswered."""
        super().on_headers_complete()
        self.head = 0
        self.unanswered.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        super().on_body(body)
        self.head = 0

    def on_response_complete(self) -> None:
        """Start the time of the next request."""
        self.unanswered.popleft()
        super().on_response_complete()
        self._start()

    def _is_answering(self) -> bool:
        return bool(self.unanswered) and not self.unanswered[0].more_body

    def _start(self) -> None:
        self._stop()
        self._deadline = self.loop.call_later(self.seconds, self._give_up)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def _give_up(self) -> None:
        if self._is_answering() or self.transport.is_closing():
            return
        last = self.cycle
        has_begun = self.scope is not None if last is None else last.scope is not self.scope  # a new head
        if has_begun or (last is not None and not last.response_started):
            self.responses[408] += 1
            body = b'{"error":"the request did not arrive in time"}'
            head = "HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\n"
            head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode() + body)
        self.transport.close()


def make_protocol(seconds: float, responses: Counter[int]) -> type[LimitedProtocol]:
    """Make the protocol with a time and a counter of its own."""
    return type("Protocol", (LimitedProtocol,), {"seconds": seconds, "responses": responses})
