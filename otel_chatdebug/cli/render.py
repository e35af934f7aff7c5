"""How a recorded run looks on a terminal: one tree and one table, for the commands and for the demo.

Pure functions from the dicts of `otel_chatdebug.tables.queries` to what rich prints. Whatever was recorded is somebody
else's text and may hold terminal escapes, so every word of it passes through `clean`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from otel_chatdebug.words import (
    END_REASONS,
    QUIET_AFTER,
    SO_FAR,
    STATUS_SIGNS,
    Row,
    clean,
    duration,
    error_text,
    lasted,
    moment,
    one_line,
    plural,
    short_count,
    size,
    usage_text,
)

STALE_AFTER = 300.0
"""Seconds; as ``Settings.stale_after``."""

MESSAGES = 3
"""The last messages of a request that are shown; the earlier ones are counted."""

FIRST_MESSAGE = 60
"""Characters of the first message that stand beside a run whose messages are not shown."""

TEXT_LENGTH = 1000
"""Characters of a text that are shown; the rest is counted."""

ID_LENGTH = 8
"""Characters of an id in the list, or more where two would look the same."""

STATUS_STYLES = {"completed": "green", "error": "red", "interrupted": "yellow", "in_progress": "cyan"}

_TOTALS = ("input_tokens", "output_tokens")


def status(value: str) -> Text:
    """The status with its sign and colour."""
    return Text(f"{STATUS_SIGNS.get(value, '?')} {clean(value)}", style=STATUS_STYLES.get(value, ""))


def local_time(value: str | None, now: datetime) -> str:
    """Today's time, or the date as well."""
    then = moment(value)
    if then is None:
        return ""
    then = then.astimezone()
    return f"{then:%H:%M:%S}" if then.date() == now.astimezone().date() else f"{then:%Y-%m-%d %H:%M:%S}"


def run_tree(
    run: Row,
    *,
    content: bool = True,
    full: bool = False,
    now: datetime | None = None,
    stale_after: float = STALE_AFTER,
) -> Tree:
    """A run, its steps and their attempts, as `otel_chatdebug.tables.queries.load_run` gives them.

    Without ``content`` no text of messages is shown. ``full`` cuts nothing and adds headers and bodies.
    """
    return _RunTree(content, full, now or datetime.now(UTC), stale_after).build(run)


class _RunTree:
    def __init__(self, content: bool, full: bool, now: datetime, stale_after: float) -> None:
        self._content = content
        self._full = full
        self._now = now
        self._stale_after = stale_after

    def build(self, run: Row) -> Tree:
        tree = Tree(self._run(run), guide_style="dim")
        for step in run.get("steps") or ():
            self._add_step(tree, step)
        if not run.get("steps"):
            tree.add(Text("no model call yet" if run.get("status") == "in_progress" else "no model call", style="dim"))
        return tree

    def _run(self, run: Row) -> Text:
        summary = run.get("summary") or {}
        label = Text.assemble((clean(run.get("kind")), "bold"), "  ", (clean(run["id"]), "dim"), "  ")
        label.append_text(self._state(run))
        first = "" if self._content else one_line(summary.get("first_message") or "")
        service = run.get("service_name")
        names = [
            ("chat", run.get("chat_id")),
            ("owner", run.get("owner_id")),
            ("started", local_time(run.get("started_at"), self._now)),
            # The SDK of OpenTelemetry makes up a name where the application has none.
            ("service", None if str(service).startswith("unknown_service") else service),
        ]
        facts = [f"“{first[:FIRST_MESSAGE]}{'…' if len(first) > FIRST_MESSAGE else ''}”" if first else ""]
        facts += [f"{name} {one_line(value)}" for name, value in names if value]
        # A sum of nothing is no count: zeros mean that no provider has said any.
        facts.append(usage_text({name: summary.get(f"total_{name}") or None for name in _TOTALS}))
        if run.get("status") == "completed" and summary.get("has_error"):
            facts.append("with an error on the way")
        self._add_facts(label, facts)
        self._add_trouble(label, run)
        self._add_silence(label, run)
        return label

    def _add_step(self, tree: Tree, step: Row) -> None:
        metadata = step.get("metadata") or {}
        label = Text.assemble((f"step {step.get('step_number') or '?'}", "bold"), "  ")
        label.append(f"{one_line(step.get('model') or 'unknown model')}  ", style="bold")
        label.append_text(self._state(step))
        answered = metadata.get("response_model")
        reasons = metadata.get("finish_reasons") or metadata.get("finish_reason")
        facts = [
            one_line(step.get("provider") or ""),
            one_line(step.get("operation") or ""),
            f"answered by {one_line(answered)}" if answered and answered != step.get("model") else "",
            usage_text(step.get("usage")),
            f"finished with {one_line(', '.join(_strings(reasons)))}" if reasons else "",
            f"id {one_line(step['id'])}" if self._full else "",
        ]
        self._add_facts(label, facts)
        attempts = step.get("attempts") or ()
        if not attempts or step.get("error") != attempts[-1].get("error"):  # else it is told where it happened
            self._add_trouble(label, step)
        branch = tree.add(label)
        if self._content:
            self._add_messages(branch, step.get("normalized_request"))
        for attempt in attempts:
            self._add_attempt(branch, attempt)
        if not attempts:
            branch.add(Text("no request was sent", style="dim"))
        if self._content:
            extent = {"in_progress": " so far", "completed": ""}.get(str(step.get("status")), ", not whole")
            self._add_messages(branch, step.get("normalized_response"), extent)

    def _add_attempt(self, branch: Tree, attempt: Row) -> None:
        label = Text(f"attempt {attempt.get('number') or '?'}  ")
        where = one_line(attempt.get("url") or attempt.get("path") or "")
        label.append(f"{one_line(attempt.get('method') or '')} {where}".strip() + "  ")
        code = attempt.get("response_status")
        if code is not None:
            label.append(f"{code}  ", style="red" if code >= 400 else "")
        label.append_text(self._state(attempt))
        started = moment(attempt.get("started_at"))
        first = moment(attempt.get("first_byte_at"))
        received, events = attempt.get("bytes_received") or 0, attempt.get("events") or 0
        reason = attempt.get("end_reason")
        facts = [
            END_REASONS.get(reason, one_line(reason)) if reason else "",
            f"first byte after {duration((first - started).total_seconds())}" if first and started else "",
            size(received) if code is not None else "",
            plural(events, "event") if events else "",
            f"id {one_line(attempt['id'])}" if self._full else "",
        ]
        self._add_facts(label, facts)
        self._add_trouble(label, attempt)
        self._add_wait(label, attempt)
        node = branch.add(label)
        if self._full:
            for side in ("request", "response"):
                self._add_headers(node, side, attempt.get(f"{side}_headers"))
                self._add_body(node, side, attempt.get(f"{side}_body"))

    def _state(self, row: Row) -> Text:
        return status(str(row.get("status"))).append(f"  {lasted(row, self._now)}", style="default")

    def _add_facts(self, label: Text, facts: Iterable[str]) -> None:
        known = [fact for fact in facts if fact]
        if known:
            label.append("\n" + " · ".join(known), style="dim")

    def _add_trouble(self, label: Text, row: Row) -> None:
        if row.get("error"):
            label.append(f"\n{error_text(row['error'])}", style="red")

    def _add_silence(self, label: Text, run: Row) -> None:
        """What no record tells: that nobody is there any more to write one."""
        if run.get("status") != "in_progress":
            return
        silence = self._since(run.get("heartbeat_at") or run.get("updated_at") or run.get("started_at"))
        if silence > self._stale_after:
            label.append(
                f"\nNo sign of life from its process for {duration(silence)}. `otel-chatdebug sweep` closes such rows.",
                style="yellow",
            )

    def _add_wait(self, label: Text, attempt: Row) -> None:
        """What an open attempt is waiting for, and since when."""
        if attempt.get("status") != "in_progress":
            return
        if attempt.get("response_status") is None:
            waiting = f"waiting for an answer for {duration(self._since(attempt.get('started_at')))}"
        elif attempt.get("last_byte_at") is None:
            waiting = f"headers came, no byte of the body yet for {duration(self._since(attempt.get('started_at')))}"
        else:
            silence = self._since(attempt["last_byte_at"])
            if silence < QUIET_AFTER:
                return
            waiting = f"nothing has come for {duration(silence)}"
        label.append(f"\n{waiting}", style="bold yellow")

    def _since(self, value: str | None) -> float:
        then = moment(value)
        return (self._now - then).total_seconds() if then else 0.0

    def _add_messages(self, branch: Tree, content: Any, extent: str = "") -> None:
        messages = content.get("messages") if isinstance(content, Mapping) else None
        if not isinstance(messages, Sequence):
            return
        hidden = 0 if self._full else max(0, len(messages) - MESSAGES)
        if hidden:
            branch.add(Text(f"{plural(hidden, 'earlier message')} (--full shows all)", style="dim"))
        for message in messages[hidden:]:
            role = one_line(message.get("role") or "message") if isinstance(message, Mapping) else "message"
            parts = message.get("parts") if isinstance(message, Mapping) else message
            text = "\n".join(_part_text(part) for part in (parts if isinstance(parts, list) else [parts]))
            style = "magenta" if role == "assistant" else "blue"
            branch.add(Text.assemble((f"{role}{extent}: ", style), self._cut(text)))

    def _add_headers(self, node: Tree, side: str, headers: Any) -> None:
        if headers:
            lines = [f"{one_line(name)}: {one_line(value)}" for name, value in headers]
            node.add(Text.assemble((f"{side} headers\n", "blue"), "\n".join(lines)))

    def _add_body(self, node: Tree, side: str, body: str | None) -> None:
        if body:
            node.add(Text.assemble((f"{side} body\n", "blue"), clean(_pretty(body))))

    def _cut(self, text: str) -> str:
        text = clean(text)
        rest = len(text) - TEXT_LENGTH
        if self._full or rest <= 0:
            return text
        return f"{text[:TEXT_LENGTH]}… ({plural(rest, 'more character')}, --full shows all)"


def _part_text(part: Any) -> str:
    """A part of a message: its text, or what else it is."""
    if not isinstance(part, Mapping):
        return "" if part is None else str(part)
    kind = part.get("type")
    text = part.get("text", part.get("content"))
    if kind == "text" and isinstance(text, str):
        return text
    if kind == "tool_call":
        return f"[calls {part.get('name')}({_compact(part.get('arguments'))})]"
    if isinstance(text, str):
        return f"[{kind}] {text}"
    return f"[{kind}] {_compact({key: value for key, value in part.items() if key != 'type'})}"


def _compact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _pretty(body: str) -> str:
    try:
        return json.dumps(json.loads(body), ensure_ascii=False, indent=2)
    except ValueError:
        return body  # an event stream, or not whole


def _strings(value: Any) -> Iterator[str]:
    yield from (str(item) for item in value) if isinstance(value, list) else (str(value),)


def unique_ids(ids: Sequence[str]) -> list[str]:
    """The ids, cut to the same length: `ID_LENGTH`, or more where two of them would look the same."""
    length = ID_LENGTH
    while len({name[:length] for name in ids}) < len(set(ids)):
        length += 1
    return [name[:length] for name in ids]


def runs_table(runs: Sequence[Row], *, width: int, now: datetime | None = None) -> Table:
    """The list of runs, one line each. On a narrow terminal the less telling columns are left out."""
    now = now or datetime.now(UTC)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="dim")
    columns = [column for column in _COLUMNS if width >= column.needs]
    rows = [
        [column.cell(run, short, now) for column in columns]
        for run, short in zip(runs, unique_ids([str(run["id"]) for run in runs]), strict=True)
    ]
    for place, column in enumerate(columns):
        widest = max([len(column.title), *(row[place].cell_len for row in rows)])
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="ellipsis",
            # Only the last one gives way where the terminal is too narrow.
            min_width=min(widest, column.most) if column is not columns[-1] else None,
            max_width=column.most,
        )
    for row in rows:
        table.add_row(*row)
    return table


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    value: Callable[[Row, str, datetime], Text | str | None]
    """Of a run, its cut id, and the present time."""
    needs: int = 0
    """The terminal's width below which it is left out."""
    most: int = 30
    """Its own greatest width."""
    right: bool = False

    def cell(self, run: Row, short: str, now: datetime) -> Text:
        value = self.value(run, short, now)
        return value if isinstance(value, Text) else Text(one_line("" if value is None else value))


def _summary(run: Row, name: str) -> Any:
    return (run.get("summary") or {}).get(name)


def _tokens(run: Row) -> str:
    read, written = _summary(run, "total_input_tokens"), _summary(run, "total_output_tokens")
    if not read and not written:
        return ""
    return f"{short_count(read or 0)} / {short_count(written or 0)}"


_COLUMNS = [
    _Column("id", lambda run, short, now: Text(clean(short), style="bold")),
    _Column("started", lambda run, short, now: local_time(run.get("started_at"), now)),
    _Column("kind", lambda run, short, now: run.get("kind")),
    _Column("chat", lambda run, short, now: run.get("chat_id"), needs=120, most=20),
    _Column("status", lambda run, short, now: status(str(run.get("status")))),
    _Column("duration", lambda run, short, now: lasted(run, now).removesuffix(SO_FAR), right=True),
    _Column("model", lambda run, short, now: run.get("model"), needs=140, most=26),
    _Column("steps", lambda run, short, now: _summary(run, "step_count"), needs=105, right=True),
    _Column("tokens in/out", lambda run, short, now: _tokens(run), needs=90, right=True),
    _Column("first message", lambda run, short, now: _summary(run, "first_message"), most=60),
]
