"""Every setting: its environment variable, its default, what it means. There is no other place that reads one.

``Settings.load()`` reads the environment once (at ``configure()``, at instrumentation, at the start of the CLI). A bad
value gives one clear warning that names the variable, the value and what is allowed, and the default is used; for who
is recorded, which is a matter of privacy, nobody is. Keyword arguments of ``configure()`` go over the environment.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

import platformdirs

from otel_chatdebug import trace_links

logger = logging.getLogger("otel_chatdebug")

OTLP_EXPORTERS = frozenset({"otlp", "otlp_proto_grpc", "otlp_proto_http", "chatdebug_otlp"})
"""Names of ``OTEL_TRACES_EXPORTER`` that mean OTLP."""

ALWAYS, OPT_IN, NEVER = "always", "opt_in", "never"
"""Who is recorded."""

DATABASE_FILE = "chatdebug.db"
"""The name of the SQLite file in the state folder."""

STALE_AFTER = 300.0
"""Seconds without a heartbeat after which a process counts as dead: for the sweep, and for whoever asks who lives."""

SHORTEST_STALE_AFTER = 0.1
"""Heartbeats are transactions; more than some tens a second for each process would be a load."""

SMALLEST_QUEUE = 1024**2
"""Bytes: with less, one long conversation would not fit."""

MODEL_PATHS = (
    r"/completions$"
    r"|/responses(?:/compact)?$"
    r"|/messages(?:/batches)?$"
    r"|/embeddings$"
    r"|:(?:stream)?[gG]enerateContent$|:embedContent$|:batchEmbedContents$|:batchGenerateContent$"
    r"|/publishers/[^/]+/models/(?!count-tokens)[^/:]+:(?:predict|rawPredict|streamRawPredict)$"
    r"|/v\d+(?:alpha|beta)\w*/(?:projects/[^/]+/locations/[^/]+/)?interactions$"
    r"|/api/(?:chat|generate|embed)$"
    r"|/model/.+/(?:invoke|converse)(?:-with-response-stream|-stream)?$"
)
"""Paths of the endpoints that generate: OpenAI and its many relatives, Anthropic, Gemini, Ollama, Bedrock.

Of batches the request that hands in the prompts is one of them; looking how far it has got, and fetching the results,
is none. Nor is what generates in one API and not in another: ``/v1/conversations`` is Mistral's, and OpenAI's."""


CONTENT_MODES = ("NO_CONTENT", "SPAN_ONLY", "EVENT_ONLY", "SPAN_AND_EVENT")
"""What ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` may say."""


def state_folder() -> Path:
    """The user's state folder for this package; the same for the application and the CLI. Not created here."""
    return Path(platformdirs.user_state_dir("otel-chatdebug", appauthor=False))


def default_database_url() -> str:
    """SQLite in `state_folder`."""
    return f"sqlite:///{state_folder() / DATABASE_FILE}"


class BadValue(ValueError):
    """A value that a setting cannot take; the message says what it can."""


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        value = text.strip().lower()
        if value not in allowed:
            raise BadValue(f"one of {', '.join(allowed)}")
        return value

    return parse


def _content_mode(text: str) -> str:
    value = text.strip().upper()
    value = {"TRUE": "SPAN_AND_EVENT", "FALSE": "NO_CONTENT"}.get(value, value)
    if value not in CONTENT_MODES:
        raise BadValue(f"one of {', '.join(CONTENT_MODES)}, true, false")
    return value


def _number(minimum: float, what: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not minimum <= value < float("inf"):
            raise BadValue(f"{what}, {minimum:g} or more")
        return value

    return parse


def _bytes(text: str) -> int:
    return int(_number(0, "a whole number of bytes")(text))


def _queue_bytes(text: str) -> int:
    return int(_number(SMALLEST_QUEUE, "a whole number of bytes")(text))


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as exc:
        raise BadValue(f"a regular expression ({exc})") from None
    return text


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip().lower() for name in text.split(",") if name.strip())


def _trace_url(text: str) -> str:
    try:
        return trace_links.check(text)
    except ValueError as exc:
        raise BadValue(str(exc)) from None


def _text(text: str) -> str:
    return text


def _setting(
    variable: str,
    default: Any,
    parse: Callable[[str], Any],
    meaning: str,
    shown: str | None = None,
    *,
    if_bad: Any = None,
) -> Any:
    """A dataclass field with what the README's table and `Settings.load` need in its metadata.

    ``if_bad`` is used in place of a bad value; None: the default.
    """
    metadata = {"variable": variable, "parse": parse, "meaning": meaning, "shown": shown or f"`{default}`"}
    return field(default=default, repr=not variable.endswith("_TOKEN"), metadata=metadata | {"if_bad": if_bad})


def _check(given: Mapping[str, Any]) -> None:
    """Raises for what the caller's code must not say of a setting."""
    for name, value in given.items():
        if name == "enabled" and value not in (ALWAYS, OPT_IN, NEVER):
            raise ValueError(f"enabled is one of {ALWAYS}, {OPT_IN}, {NEVER}, not {value!r}")
        if name == "database_url" and not isinstance(value, str):
            raise TypeError(f"database_url is a text (sqlite:////path, postgresql://...), not {value!r}")
        if name == "stale_after":
            if not isinstance(value, int | float):
                raise TypeError(f"stale_after is a number of seconds, not {value!r}")
            if not SHORTEST_STALE_AFTER <= value < math.inf:
                raise ValueError(f"stale_after is a number of seconds from {SHORTEST_STALE_AFTER}, not {value!r}")
        if name in ("allow_headers", "allow_query", "secret_keys") and (
            isinstance(value, str) or not all(isinstance(item, str) for item in value)
        ):
            raise TypeError(f"{name} is a tuple of names, not {value!r}")


_told: set[tuple[str, str]] = set()
"""Bad values, with their variables, that there was a warning of: the environment is read by each instrumentation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, with their defaults. Immutable; any thread."""

    database_url: str = _setting(
        "OTEL_CHATDEBUG_DATABASE_URL",
        "",
        _text,
        "Where the tables are: an SQLAlchemy URL (`sqlite:////path` or `postgresql://user:password@host/database`).",
        "SQLite in the user's state folder",
    )
    enabled: Literal["always", "opt_in", "never"] = _setting(
        "OTEL_CHATDEBUG_ENABLED",
        ALWAYS,
        _choice(ALWAYS, OPT_IN, NEVER),
        "Who is recorded: everybody; with `opt_in` only the runs of users who want it (`otel-chatdebug settings`); "
        "nobody: `run` and `step` then cost next to nothing.",
        if_bad=NEVER,  # whoever misspells this one may have meant to record nobody
    )
    stale_after: float = _setting(
        "OTEL_CHATDEBUG_STALE_AFTER",
        STALE_AFTER,
        _number(SHORTEST_STALE_AFTER, "a number of seconds"),
        "Seconds without a heartbeat after which a process counts as dead, and what it left open as interrupted.",
    )
    retention_days: float = _setting(
        "OTEL_CHATDEBUG_RETENTION",
        14.0,
        _number(0, "a number of days"),
        "Days that rows are kept (checked at start and hourly); 0 keeps all.",
    )
    content_retention_days: float = _setting(
        "OTEL_CHATDEBUG_CONTENT_RETENTION",
        14.0,
        _number(0, "a number of days"),
        "Days that contents (messages, headers, bodies) are kept, where that is less; 0: as long as their rows.",
    )
    max_size: int = _setting(
        "OTEL_CHATDEBUG_MAX_SIZE",
        1024**3,
        _bytes,
        "Bytes of content (bodies, messages, headers) that are kept; the oldest goes first. 0 is no limit.",
        "1 GiB",
    )
    max_queue_size: int = _setting(
        "OTEL_CHATDEBUG_MAX_QUEUE_SIZE",
        64 * 1024**2,
        _queue_bytes,
        "Bytes of records that wait at most while the database is away: in memory, and in `spool.db` in the state "
        "folder when the process ends. Content goes first, and the oldest.",
        "64 MiB",
    )
    run_parent: Literal["root", "child"] = _setting(
        "OTEL_CHATDEBUG_RUN_PARENT",
        "root",
        _choice("root", "child"),
        "`root`: an explicit run is a trace of its own, linked to the current span. `child`: a child of that span.",
    )
    trace_url: str = _setting(
        "OTEL_CHATDEBUG_TRACE_URL",
        "",
        _trace_url,
        "Where a trace is to be seen: an address of Jaeger, or a URL with `{trace_id}` (and `{span_id}`) in it.",
        "none",
    )
    model_paths: str = _setting(
        "OTEL_CHATDEBUG_MODEL_PATHS",
        MODEL_PATHS,
        _pattern,
        "Regular expression, searched in the path of a POST: what counts as a model call.",
        "the endpoints of OpenAI and its relatives, Anthropic, Gemini, Ollama, Bedrock",
    )
    allow_headers: tuple[str, ...] = _setting(
        "OTEL_CHATDEBUG_ALLOW_HEADERS",
        (),
        _names,
        "Names of further headers whose values may be recorded, separated by commas; `*` matches any text.",
        "none",
    )
    allow_query: tuple[str, ...] = _setting(
        "OTEL_CHATDEBUG_ALLOW_QUERY",
        (),
        _names,
        "Names of further query parameters whose values may be recorded, separated by commas.",
        "none",
    )
    secret_keys: tuple[str, ...] = _setting(
        "OTEL_CHATDEBUG_SECRET_KEYS",
        (),
        _names,
        "Names of further JSON keys whose values are secrets, separated by commas; `*` matches any text.",
        "none",
    )
    viewer_token: str = _setting(
        "OTEL_CHATDEBUG_TOKEN",
        "",
        str.strip,
        "What opens the web page. It is shown nowhere.",
        "a new one at each start",
    )
    messages_table: str = _setting(
        "OTEL_CHATDEBUG_MESSAGES_TABLE",
        "",
        str.strip,
        "The application's own table of messages (`table` or `schema.table`), in the same database: the snapshot of a "
        "chat counts them.",
        "none",
    )
    messages_columns: str = _setting(
        "OTEL_CHATDEBUG_MESSAGES_COLUMNS",
        "chat_id,role",
        str.strip,
        "Its columns with the chat's id, the role and, if there is one, what says that a message is deleted: a "
        "boolean, or a time that is NULL otherwise.",
    )
    capture_content: Literal["NO_CONTENT", "SPAN_ONLY", "EVENT_ONLY", "SPAN_AND_EVENT"] = _setting(
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT",
        "NO_CONTENT",
        _content_mode,
        "The standard switch for messages on spans (`SPAN_ONLY`), in events (`EVENT_ONLY`) or both (`SPAN_AND_EVENT`). "
        "Of its older form, `true` is both. The tables have them either way.",
    )
    sdk_disabled: bool = _setting(
        "OTEL_SDK_DISABLED",
        False,
        lambda text: text.strip().lower() == "true",
        "The standard switch: `true` switches everything off, this package included.",
        "`false`",
    )
    traces_exporter: str = _setting(
        "OTEL_TRACES_EXPORTER",
        "",
        _text,
        "`otlp` or `chatdebug_otlp` sends the spans on by OTLP; `none` does not. The tables are written either way.",
        "`otlp` where an endpoint is set, else none",
    )
    otlp_endpoint: str = _setting(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "",
        _text,
        "Where the spans go; `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` goes first. Set alone, it switches OTLP on.",
        "none",
    )
    disabled_instrumentations: tuple[str, ...] = _setting(
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS",
        (),
        _names,
        "Entry points that are not loaded: `chatdebug_httpx`, `chatdebug_httpx2`, or `*`.",
        "none",
    )

    @property
    def recording(self) -> bool:
        """Whether anything is recorded at all."""
        return self.enabled != NEVER and not self.sdk_disabled

    @property
    def content_on_spans(self) -> bool:
        """Whether spans get messages."""
        return self.capture_content in ("SPAN_ONLY", "SPAN_AND_EVENT")

    @property
    def content_in_events(self) -> bool:
        """Whether calls are told as events with their messages."""
        return self.capture_content in ("EVENT_ONLY", "SPAN_AND_EVENT")

    @property
    def wants_otlp(self) -> bool:
        """OTLP is on only where an exporter or an endpoint says so: a newcomer sees no "connection refused"."""
        names = _names(self.traces_exporter)
        return bool(OTLP_EXPORTERS & set(names)) if names else bool(self.otlp_endpoint)

    @property
    def other_exporters(self) -> list[str]:
        """What ``OTEL_TRACES_EXPORTER`` names besides: exporters that ``configure()`` does not make."""
        return [name for name in _names(self.traces_exporter) if name not in OTLP_EXPORTERS | {"chatdebug", "none"}]

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Reads the environment (default ``os.environ``); ``overrides`` that are not None go over it.

        Never raises for a bad value in the environment. An override is the caller's own code: an unknown name, or a
        value of another type, is a ``TypeError``, one that is not allowed a ``ValueError``.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for item in fields(cls):
            variable = item.metadata["variable"]
            text = environ.get(variable)
            if variable == "OTEL_EXPORTER_OTLP_ENDPOINT":
                text = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or text
            if text is None or not text.strip():
                continue
            try:
                values[item.name] = item.metadata["parse"](text)
            except BadValue as allowed:
                instead = item.metadata["if_bad"]
                used = f"the default, {str(item.metadata['shown']).strip('`')}" if instead is None else str(instead)
                if (variable, text) not in _told:
                    _told.add((variable, text))
                    logger.warning("%s=%r is not valid (it takes %s); using %s", variable, text, allowed, used)
                if instead is not None:
                    values[item.name] = instead
        given = {name: value for name, value in overrides.items() if value is not None}
        _check(given)
        settings = cls(**(values | given))
        if not settings.database_url:
            settings = replace(settings, database_url=default_database_url())
        return settings

    @classmethod
    def table(cls) -> list[tuple[str, str, str]]:
        """``(variable, default, meaning)`` of every setting, for the README and ``otel-chatdebug info``."""
        return [
            (
                cast(str, item.metadata["variable"]),
                cast(str, item.metadata["shown"]),
                cast(str, item.metadata["meaning"]),
            )
            for item in fields(cls)
        ]
