"""A model provider on this machine: real HTTP/1.1 over a real socket, honest in what it does and scripted in how.

::

    with Provider() as provider:
        provider.script(Behaviour(status=429, retry_after=0.02), Behaviour(text="Hello!"))
        client = openai.OpenAI(base_url=f"{provider.url}/v1", api_key="any")

Each request takes the next behaviour of the script; without one it gets a good answer. A request can also name one of
`NAMED` in the header ``x-demo-behaviour``, or as its model. Used by the demo and by the tests of this package.

It counts in *deltas*: pieces of a body that carry text (an SSE event each, or an even part of a JSON body). Every
wait is made on an event and ends when the behaviour is released or the provider is closed.

Standard library only; ``br`` and ``zstd`` need brotli and zstandard. One thread accepts and each connection has one of
its own. Threads and not asyncio, since a script of writes and waits reads best as one.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import importlib
import json
import math
import socket
import struct
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from typing import Any, BinaryIO, Literal, Protocol, TypeAlias, cast

from otel_chatdebug.demo.answers import CREATED, FORMATS, Format, OpenAIChat, Piece

DEFAULT_CHUNKS = 5
MAX_LINE = 65536
"""Bytes of a request line; a longer one is answered with 414 in real servers, here it ends the connection."""

JOIN_TIMEOUT = 5.0
"""Seconds that `Provider.close` waits for each of its threads."""

Framing: TypeAlias = Literal["chunked", "length", "close"]
"""How the end of a body is known: RFC 9112, section 6.3."""


@dataclass(kw_only=True, eq=False)
class Behaviour:
    """How one request is answered. The default is a good answer of five deltas with usage.

    A count of deltas (``*_after``) of 0 means before the first byte of the body. A behaviour is meant for one request;
    where it is scripted twice, `release` frees both.
    """

    status: int = 200
    """400 and more brings that provider's error body, unless ``body`` is given."""
    retry_after: float | None = None
    """Seconds; sent as ``retry-after`` (rounded up) and ``retry-after-ms``, which the SDKs prefer."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent besides the usual ones; a name that is sent anyway is replaced."""
    content_type: str | None = None

    text: str | None = None
    """What the model says; by default one numbered word for each delta."""
    chunks: int | None = None
    """How many deltas; by default as many as ``text`` has words, or 5."""
    delay: float = 0.0
    """Seconds between two pieces."""
    usage: bool = True
    """False leaves the token counts out. (OpenAI sends them in a chat stream only where it is asked to.)"""
    terminal: bool = True
    """False leaves out ``[DONE]``, ``response.completed`` or ``message_stop``; the body ends as if all were well."""

    stall_headers: bool = False
    """Hold before the status line, until released."""
    stall_after: int | None = None
    """Hold after so many deltas, until released, then go on."""
    hold_end: bool = False
    """Hold after the last byte of the content and before the end of the body, until released."""
    cut_after: int | None = None
    """Drop the connection after so many deltas, inside the body."""
    reset: bool = False
    """Cut by RST and not by FIN. The client's kernel may then discard what was not read yet."""
    truncate_after: int | None = None
    """End the body cleanly after so many deltas; close-delimited unless ``framing`` says otherwise."""
    error_after: int | None = None
    """After so many deltas an error event, then the end of the stream."""

    framing: Framing | None = None
    """By default chunked for a stream and Content-Length for all else."""
    content_length: int | None = None
    """A Content-Length that may be a lie. After the body the connection is closed."""
    encoding: Literal["gzip", "deflate", "br", "zstd"] | None = None
    """Content-Encoding, flushed after each piece."""

    body: bytes | Iterable[bytes] | None = None
    """Sent in place of an answer; an iterable is sent piece by piece, each counting as a delta."""
    redirect: str | None = None
    """307 to this path or URL."""
    raw: bytes | None = None
    """Written onto the socket in place of all the above, then the connection is closed."""

    def __post_init__(self) -> None:
        self._released = threading.Event()
        self._held = threading.Event()
        if self.encoding:
            _compressor(self.encoding)  # a missing module should fail here, where the user is

    @property
    def deltas(self) -> list[str]:
        """The texts of the deltas, in their order."""
        if self.text is None:
            return [f"wörd{number} " for number in range(1, (self.chunks or DEFAULT_CHUNKS) + 1)]
        if self.chunks is None:
            words = self.text.split(" ")
            return [word + " " for word in words[:-1]] + words[-1:]
        size = max(1, math.ceil(len(self.text) / max(1, self.chunks)))
        return [self.text[at : at + size] for at in range(0, len(self.text), size)]

    def release(self) -> None:
        """Ends every wait of this behaviour, now and to come. Any thread."""
        self._released.set()

    def wait_held(self, timeout: float = 5.0) -> bool:
        """Waits until the provider has come to a hold: all before it is written. False after ``timeout`` seconds."""
        return self._held.wait(timeout)

    def _hold(self) -> None:
        self._held.set()
        self._released.wait()


NAMED: dict[str, Callable[[], Behaviour]] = {
    "ok": Behaviour,
    "slow": lambda: Behaviour(chunks=20, delay=0.1),
    "rate-limited": lambda: Behaviour(status=429, retry_after=1),
    "server-error": lambda: Behaviour(status=500),
    "overloaded": lambda: Behaviour(status=529),
    "stall": lambda: Behaviour(stall_after=3),
    "stall-headers": lambda: Behaviour(stall_headers=True),
    "late-end": lambda: Behaviour(hold_end=True),
    "cut": lambda: Behaviour(cut_after=3),
    "truncated": lambda: Behaviour(truncate_after=3),
    "error-event": lambda: Behaviour(error_after=3),
    "no-terminal": lambda: Behaviour(terminal=False),
    "garbage": lambda: Behaviour(body=b"\x00\xff{not json, nor anything else\xfe"),
    "html": lambda: Behaviour(content_type="text/html", body=b"<html><h1>It works!</h1></html>"),
    "not-http": lambda: Behaviour(raw=b"SSH-2.0-OpenSSH_9.6\r\n"),
}
"""Behaviours that a request can ask for by name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """A request as it arrived."""

    method: str
    path: str
    """With its query string."""
    headers: Mapping[str, str]
    """Names in lower case; of a repeated header the last value."""
    body: bytes
    connection: int
    """Which connection it came over, from 1."""

    @cached_property
    def json(self) -> Any:
        """The body's JSON value, or None where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def field(self, name: str) -> Any:
        """A value of the body's JSON object, or None."""
        return self.json.get(name) if isinstance(self.json, dict) else None


class Provider:
    """The server. Starts with ``with`` or `start`, and ends with the block or `close`, which frees every wait.

    All methods can be called by any thread.
    """

    def __init__(self) -> None:
        self._script: deque[Behaviour] = deque()
        self._requests: list[Request] = []
        self._arrived = threading.Condition()
        self._lock = threading.Lock()
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._connection_count = 0
        self._active: set[Behaviour] = set()
        self._closing = threading.Event()
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``, without a path: Anthropic's base URL. OpenAI's has ``/v1`` behind it."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def requests(self) -> list[Request]:
        """What has arrived so far, in its order (a copy)."""
        with self._arrived:
            return list(self._requests)

    def script(self, *behaviours: Behaviour) -> None:
        """Appends to the queue; each request, to whatever path, takes the next one."""
        with self._lock:
            self._script.extend(behaviours)

    def wait_for_requests(self, count: int, timeout: float = 5.0) -> list[Request]:
        """The requests, once there are ``count`` of them. `TimeoutError` after ``timeout`` seconds."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: len(self._requests) >= count, timeout):
                raise TimeoutError(f"{len(self._requests)} of {count} requests came within {timeout} s")
            return list(self._requests)

    def start(self) -> Provider:
        """Listens on a free port."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._port = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="demo-provider", daemon=True)
        self._acceptor.start()
        return self

    def close(self) -> None:
        """Drops all connections and ends all threads. Can be repeated."""
        if self._listener is None or self._acceptor is None or self._closing.is_set():
            return
        self._closing.set()
        # Closing a socket wakes no accept() that waits for it; a connection does, on every system.
        socket.create_connection(("127.0.0.1", self._port), timeout=JOIN_TIMEOUT).close()
        self._acceptor.join(JOIN_TIMEOUT)
        self._listener.close()
        with self._lock:
            connections = dict(self._connections)
            waiting = self._active | set(self._script)
        for behaviour in waiting:
            behaviour.release()
        for thread, connection in connections.items():
            _shut(connection)
            thread.join(JOIN_TIMEOUT)

    def __enter__(self) -> Provider:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _accept(self) -> None:
        listener = cast(socket.socket, self._listener)
        while True:
            connection, _ = listener.accept()
            if self._closing.is_set():
                connection.close()
                return
            # Each piece is a packet of its own, at once.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connection_count += 1
            number = self._connection_count
            thread = threading.Thread(
                target=self._serve, args=(connection, number), name=f"demo-provider-{number}", daemon=True
            )
            with self._lock:
                self._connections[thread] = connection
            thread.start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        """One connection: a request and its answer, until one side closes."""
        reader = connection.makefile("rb")
        try:
            while not self._closing.is_set():
                request = _read_request(reader, connection, number)
                if request is None or not self._answer(connection, request):
                    break
        except ConnectionError:
            pass  # the client went away in the middle, which is what clients do; its test looks at the client's side
        finally:
            reader.close()
            connection.close()
            with self._lock:
                self._connections.pop(threading.current_thread(), None)

    def _answer(self, connection: socket.socket, request: Request) -> bool:
        """Sends the answer. False when the connection is to be closed."""
        behaviour = self._behaviour(request)
        with self._arrived:
            self._requests.append(request)
            self._arrived.notify_all()
        try:
            return _Answer(request, behaviour, connection, self._closing).send()
        finally:
            with self._lock:
                self._active.discard(behaviour)

    def _behaviour(self, request: Request) -> Behaviour:
        named = NAMED.get(request.headers.get("x-demo-behaviour") or str(request.field("model")))
        with self._lock:
            behaviour = named() if named else self._script.popleft() if self._script else Behaviour()
            self._active.add(behaviour)
        if self._closing.is_set():
            behaviour.release()  # close() may have looked just before it became active
        return behaviour


class _Answer:
    """One answer on its way out."""

    def __init__(
        self, request: Request, behaviour: Behaviour, connection: socket.socket, closing: threading.Event
    ) -> None:
        self._request = request
        self._behaviour = behaviour
        self._connection = connection
        self._closing = closing
        path = request.path.partition("?")[0]
        self._format = next((form for end, form in FORMATS.items() if path.endswith(end)), None)
        self._path = path
        self._stopped = False
        """The body ended before its time: cut or truncated."""
        self._cut = False

    def send(self) -> bool:
        """True when the connection can serve another request."""
        behaviour = self._behaviour
        if behaviour.stall_headers:
            behaviour._hold()
        if behaviour.raw is not None:
            self._connection.sendall(behaviour.raw)
            return False
        status, content_type, pieces = self._content()
        framing = self._framing(content_type)
        headers = self._headers(content_type, framing)
        if self._request.method == "HEAD" or status < 200 or status in (204, 304):
            self._connection.sendall(_head(status, headers))
            return True
        if framing == "length":
            pieces = list(pieces)
            whole = b"".join(self._encoded(pieces, stop=False))
            lie = behaviour.content_length
            headers["content-length"] = str(len(whole) if lie is None else lie)
        self._connection.sendall(_head(status, headers))
        chunked = framing == "chunked"
        for data in self._encoded(pieces, stop=True):
            self._connection.sendall(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
        if self._cut:
            if behaviour.reset:
                # Lingering for 0 s discards what is unsent and sends RST: SO_LINGER in socket(7).
                self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if behaviour.hold_end:
            behaviour._hold()
        if chunked:
            self._connection.sendall(b"0\r\n\r\n")
        return framing != "close" and behaviour.content_length is None and not (framing == "length" and self._stopped)

    def _content(self) -> tuple[int, str, Iterable[Piece]]:
        """Status code, content type, and the body."""
        behaviour, form = self._behaviour, self._format
        stream = self._request.field("stream") is True
        if behaviour.redirect is not None:
            return (307 if behaviour.status == 200 else behaviour.status), "text/plain", []
        if behaviour.body is not None:
            content_type = "text/event-stream; charset=utf-8" if stream else "application/json"
            parts = [behaviour.body] if isinstance(behaviour.body, bytes) else behaviour.body
            return behaviour.status, content_type, (Piece(part, delta=True) for part in parts)
        if behaviour.status >= 400:
            return behaviour.status, "application/json", self._json((form or OpenAIChat()).error(behaviour.status))
        if form is None or self._request.method != "POST":
            status, body = _elsewhere(self._request.method, self._path)
            return status, "application/json", self._json(body)
        model = self._request.field("model") or form.default_model
        if not stream:
            whole = form.whole(model, "".join(behaviour.deltas), usage=behaviour.usage)
            return behaviour.status, "application/json", self._json(whole)
        pieces = form.stream(model, behaviour.deltas, usage=behaviour.usage, terminal=behaviour.terminal)
        return behaviour.status, "text/event-stream; charset=utf-8", self._with_error(pieces, form)

    def _json(self, body: dict[str, Any]) -> list[Piece]:
        """In even parts, so that a JSON body can be cut or stalled like a stream; whole where nobody wants that."""
        data = json.dumps(body, ensure_ascii=False).encode()
        behaviour = self._behaviour
        if (
            not behaviour.delay
            and (behaviour.stall_after, behaviour.cut_after, behaviour.truncate_after) == (None,) * 3
        ):
            return [Piece(data, delta=True)]
        size = math.ceil(len(data) / (behaviour.chunks or DEFAULT_CHUNKS))
        return [Piece(data[at : at + size], delta=True) for at in range(0, len(data), size)]

    def _with_error(self, pieces: list[Piece], form: Format) -> list[Piece]:
        """The pieces up to ``error_after``, and the error event."""
        after = self._behaviour.error_after
        if after is None:
            return pieces
        ends = [0] + [place + 1 for place, piece in enumerate(pieces) if piece.delta]
        return [*pieces[: ends[min(after, len(ends) - 1)]], Piece(form.error_event())]

    def _framing(self, content_type: str) -> Framing:
        behaviour = self._behaviour
        if behaviour.content_length is not None:
            return "length"
        if behaviour.framing is not None:
            return behaviour.framing
        if behaviour.truncate_after is not None:
            return "close"
        endless = behaviour.body is not None and not isinstance(behaviour.body, bytes)
        return "chunked" if endless or content_type.startswith("text/event-stream") else "length"

    def _headers(self, content_type: str, framing: Framing) -> dict[str, str]:
        behaviour = self._behaviour
        headers = {
            "date": email.utils.formatdate(usegmt=True),
            "server": "otel-chatdebug-demo",
            "content-type": behaviour.content_type or content_type,
            getattr(self._format, "request_id_header", "x-request-id"): "req_demo",
        }
        if framing == "chunked":
            headers["transfer-encoding"] = "chunked"
        if framing == "close" or behaviour.content_length is not None:
            headers["connection"] = "close"
        if behaviour.encoding:
            headers["content-encoding"] = behaviour.encoding
        if behaviour.redirect is not None:
            headers["location"] = behaviour.redirect
        if behaviour.retry_after is not None:
            headers["retry-after"] = str(math.ceil(behaviour.retry_after))
            headers["retry-after-ms"] = f"{behaviour.retry_after * 1000:g}"
        return headers | {name.lower(): value for name, value in behaviour.headers.items()}

    def _encoded(self, pieces: Iterable[Piece], *, stop: bool) -> Iterator[bytes]:
        """What goes onto the wire, piece by piece; with ``stop``, the behaviour's waits and early ends happen here."""
        compressor = _compressor(self._behaviour.encoding) if self._behaviour.encoding else None
        for piece in self._paced(pieces) if stop else pieces:
            data = compressor.piece(piece.data) if compressor else piece.data
            if data:  # an empty chunk would end the body
                yield data
        if compressor and not self._cut:
            yield compressor.end()

    def _paced(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        behaviour = self._behaviour
        count = 0
        if self._at(count):
            return
        for number, piece in enumerate(pieces):
            if number and behaviour.delay:
                self._closing.wait(behaviour.delay)
            if self._closing.is_set():
                self._cut = True
                return
            yield piece
            if piece.delta:
                count += 1
                if self._at(count):
                    return

    def _at(self, count: int) -> bool:
        """After ``count`` deltas: holds where that is wanted, and says whether to stop."""
        behaviour = self._behaviour
        if count == behaviour.stall_after:
            behaviour._hold()
        self._cut = count == behaviour.cut_after
        self._stopped = self._cut or count == behaviour.truncate_after
        return self._stopped


def _elsewhere(method: str, path: str) -> tuple[int, dict[str, Any]]:
    """The endpoints that generate nothing: they are no model calls and must not be taken for one."""
    name = path.rstrip("/").rpartition("/")[2]
    if method == "GET" and name == "models":
        models = [
            {"id": form.default_model, "object": "model", "created": CREATED, "owned_by": "demo"}
            for form in FORMATS.values()
        ]
        return 200, {"object": "list", "data": models, "has_more": False}
    file = {
        "id": "file-demo",
        "object": "file",
        "bytes": 5,
        "created_at": CREATED,
        "filename": "notes.txt",
        "purpose": "user_data",
        "status": "processed",
    }
    if name == "files":
        return 200, file if method == "POST" else {"object": "list", "data": [file], "has_more": False}
    return 404, OpenAIChat().error(404)


def _read_request(reader: BinaryIO, connection: socket.socket, number: int) -> Request | None:
    """The next request, or None when the client has closed, or speaks no HTTP."""
    try:
        method, path, _version = reader.readline(MAX_LINE).decode("latin-1").split()
        headers = http.client.parse_headers(reader)
    except (ValueError, http.client.HTTPException):
        return None
    if headers.get("expect", "").lower() == "100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = b"".join(_read_chunks(reader))
    else:
        body = reader.read(int(headers.get("content-length", 0)))
    names = {name.lower(): value for name, value in headers.items()}
    return Request(method=method, path=path, headers=names, body=body, connection=number)


def _read_chunks(reader: BinaryIO) -> Iterator[bytes]:
    """A chunked request body: RFC 9112, section 7.1."""
    while size := int(reader.readline(MAX_LINE).partition(b";")[0], 16):
        yield reader.read(size)
        reader.readline(MAX_LINE)
    http.client.parse_headers(reader)  # trailers, up to the empty line


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = ""  # 529 is Anthropic's own
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed already, by either side
        connection.shutdown(socket.SHUT_RDWR)  # wakes a thread that reads or writes; close() alone does not


class _Compressor(Protocol):
    def piece(self, data: bytes) -> bytes:
        """The data, compressed and flushed: the client can read it at once."""
        ...

    def end(self) -> bytes: ...


class _Zlib:
    def __init__(self, wbits: int) -> None:
        self._stream = zlib.compressobj(wbits=wbits)

    def piece(self, data: bytes) -> bytes:
        return self._stream.compress(data) + self._stream.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._stream.flush()


class _Brotli:
    def __init__(self) -> None:
        self._stream: Any = importlib.import_module("brotli").Compressor()

    def piece(self, data: bytes) -> bytes:
        return bytes(self._stream.process(data) + self._stream.flush())

    def end(self) -> bytes:
        return bytes(self._stream.finish())


class _Zstd:
    def __init__(self) -> None:
        self._module: Any = importlib.import_module("zstandard")
        self._stream: Any = self._module.ZstdCompressor().compressobj()

    def piece(self, data: bytes) -> bytes:
        return bytes(self._stream.compress(data) + self._stream.flush(self._module.COMPRESSOBJ_FLUSH_BLOCK))

    def end(self) -> bytes:
        return bytes(self._stream.flush())


def _compressor(encoding: str) -> _Compressor:
    """A fresh compressor. `ImportError` where the module is missing, `KeyError` for an unknown encoding."""
    makers: dict[str, Callable[[], _Compressor]] = {
        "gzip": lambda: _Zlib(zlib.MAX_WBITS | 16),
        "deflate": lambda: _Zlib(zlib.MAX_WBITS),
        "br": _Brotli,
        "zstd": _Zstd,
    }
    return makers[encoding]()
