"""A run as a tree on a terminal: its steps and their attempts, each with a bar on the run's time, and what was said.

Pure functions from the dicts of `otel_chatdebug.tables.queries` to what rich prints. Whatever was recorded is somebody
else's text and may hold terminal escapes, so every word of it passes through `clean`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.text import Text
from rich.tree import Tree

from otel_chatdebug.cli.render import STATUS_STYLES, local_time, status
from otel_chatdebug.settings import STALE_AFTER
from otel_chatdebug.words import (
    END_REASONS,
    QUIET_AFTER,
    Row,
    clean,
    duration,
    error_text,
    failed_attempts,
    lasted,
    moment,
    one_line,
    plural,
    size,
    usage_text,
)

MESSAGES = 3
"""The last messages of a request that are shown; the earlier ones are counted."""

FIRST_MESSAGE = 60
"""Characters of the first message that stand beside a run whose messages are not shown."""

TEXT_LENGTH = 1000
"""Characters of a text that are shown; the rest is counted."""

AXIS = 72
"""Columns of the run's time, where the terminal has as many."""

NARROWEST_AXIS = 10
"""Columns below which no bar is drawn."""

GUIDE = 4
"""Columns by which rich indents each level of a tree."""

_TOTALS = ("input_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class Bar:
    """When something of a run was going on, on the run's time: thin until its first byte, thick while bytes came,
    dashed since the last one.

    All bars of a tree are drawn on one axis, whatever the depth they stand at.
    """

    start: float
    """0 is the start of the run, 1 its end or the present; so are the others."""
    first_byte: float | None
    """None where none came."""
    last_byte: float | None
    end: float
    style: str
    is_open: bool
    depth: int
    """1 for a step, 2 for an attempt."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        indent = GUIDE * (2 - self.depth)
        width = min(AXIS, options.max_width - indent)
        if width < NARROWEST_AXIS:
            return
        rest, thin, thick, dashed, arrow = ".-=~>" if options.ascii_only else "·─━╌▶"
        start = min(int(self.start * width), width - 1)
        end = max(start + 1, min(width, round(self.end * width)))
        first = end if self.first_byte is None else min(max(start, round(self.first_byte * width)), end)
        text = Text(" " * indent)
        text.append(rest * start, "dim")
        last = end if self.last_byte is None else min(max(first, round(self.last_byte * width)), end)
        drawn = thin * (first - start) + thick * (last - first) + dashed * (end - last)
        text.append(drawn[:-1] + arrow if self.is_open else drawn, self.style)
        text.append(rest * (width - end), "dim")
        yield text


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
        self._start, self._length = self._span(run)
        tree = Tree(self._run(run), guide_style="dim")
        for step in run.get("steps") or ():
            self._add_step(tree, step)
        if not run.get("steps"):
            tree.add(Text("no model call yet" if run.get("status") == "in_progress" else "no model call", style="dim"))
        return tree

    def _span(self, run: Row) -> tuple[datetime, float]:
        """When the run's time begins, and how many seconds it has: until its last end, or now."""
        rows = [run, *(run.get("steps") or ())]
        rows += [attempt for step in rows[1:] for attempt in step.get("attempts") or ()]
        starts = [start for row in rows if (start := moment(row.get("started_at")))]
        ends = [self._end(row) for row in rows]
        start = min(starts, default=self._now)
        return start, max((max(ends) - start).total_seconds(), 1e-6)

    def _end(self, row: Row) -> datetime:
        known = moment(row.get("finished_at")) or moment(row.get("last_byte_at")) or moment(row.get("started_at"))
        return self._now if row.get("status") == "in_progress" or known is None else known

    def _bar(self, row: Row, depth: int) -> Bar:
        def place(time: datetime | None) -> float:
            return min(1.0, max(0.0, ((time or self._start) - self._start).total_seconds() / self._length))

        start, end = place(moment(row.get("started_at"))), place(self._end(row))
        first, last = moment(row.get("first_byte_at")), moment(row.get("last_byte_at"))
        return Bar(
            start,
            start if depth == 1 else place(first) if first else None,
            place(last) if last else None,
            end,
            STATUS_STYLES.get(str(row.get("status")), ""),
            row.get("status") == "in_progress",
            depth,
        )

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
        failed = failed_attempts(attempts)
        if len(failed) > 1:  # in one look, before each is told with all that is known of it
            label.append("\n" + "\n".join(failed), style="red")
        branch = tree.add(Group(label, self._bar(step, 1)))
        if self._content:
            self._add_settings(branch, step.get("normalized_request"))
            self._add_messages(branch, step.get("normalized_request"))
        for attempt in attempts:
            self._add_attempt(branch, attempt)
        if not attempts:
            branch.add(Text("no request was sent", style="dim"))
        if self._content:
            extent = {"in_progress": " so far", "completed": ""}.get(str(step.get("status")), ", not whole")
            self._add_messages(branch, step.get("normalized_response"), extent)
            self._add_warnings(branch, step.get("normalized_response"))

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
        node = branch.add(Group(label, self._bar(attempt, 2)))
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
        if not isinstance(messages, list):
            if content:  # a shape that we do not know: as it is
                branch.add(Text(self._cut(_compact(content))))
            return
        hidden = 0 if self._full else max(0, len(messages) - MESSAGES)
        if hidden:
            branch.add(Text(f"{plural(hidden, 'earlier message')} (--full shows all)", style="dim"))
        for message in messages[hidden:]:
            role = one_line(message.get("role") or "message") if isinstance(message, Mapping) else "message"
            parts = message.get("parts") if isinstance(message, Mapping) else message
            text = "\n".join(part_text(part) for part in (parts if isinstance(parts, list) else [parts]))
            style = "magenta" if role == "assistant" else "blue"
            branch.add(Text.assemble((f"{role}{extent}: ", style), self._cut(text)))

    def _add_settings(self, branch: Tree, request: Any) -> None:
        """The options and tools that a request was sent with."""
        if not isinstance(request, Mapping):
            return
        for name in ("options", "provider_options"):
            options = request.get(name)
            if isinstance(options, Mapping) and options and (name == "options" or self._full):
                told = " · ".join(f"{key} {_compact(value)}" for key, value in options.items())
                branch.add(Text(f"{name.replace('_', ' ')}: {self._cut(told)}", style="dim"))
        tools, choice = request.get("tools"), request.get("tool_choice")
        if isinstance(tools, list) and tools:
            said = f" ({choice_text(choice)})" if choice else ""
            node = branch.add(Text(f"{plural(len(tools), 'tool')}{said}: {self._cut(tool_names(tools))}", style="dim"))
            for tool in tools if self._full else ():
                node.add(Text(clean(json.dumps(tool, ensure_ascii=False, indent=2))))

    def _add_warnings(self, branch: Tree, response: Any) -> None:
        warnings = response.get("warnings") if isinstance(response, Mapping) else None
        for warning in warnings if isinstance(warnings, list) else ():
            branch.add(Text(f"warning: {error_text(warning)}", style="yellow"))

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


def part_text(part: Any) -> str:
    """A part of a message: its text, or in brackets what else it is. Not cleaned yet."""
    if not isinstance(part, Mapping):
        return "" if part is None else str(part)
    kind = part.get("type")
    text = part.get("text")
    cut = ""
    if part.get("truncated"):
        cut = (
            f" [cut: it had {plural(part['length'], 'character')}]" if isinstance(part.get("length"), int) else " [cut]"
        )
    if kind == "text" and isinstance(text, str):
        return text + cut
    if kind == "tool_call":
        return f"[calls {part.get('name')}({_compact(part.get('arguments'))}){cut}]"
    if kind == "tool_result":
        content = part.get("content")
        said = "\n".join(map(part_text, content)) if isinstance(content, list) else _compact(content)
        return f"[{'error' if part.get('error') else 'result'} of {part.get('name') or part.get('id')}] {said}{cut}"
    if kind in ("image", "file"):
        length = part.get("bytes")
        told = [part.get("media_type"), size(length) if isinstance(length, int) else None]
        told += [part.get(name) for name in ("name", "url", "id")]
        return f"[{kind}{''.join(f' {one_line(item)}' for item in told if item)}] {text or ''}".rstrip() + cut
    if isinstance(text, str) and (text or part.keys() <= {"type", "text"}):
        return f"[{kind}] {text}{cut}"
    return f"[{kind}] {_compact({key: value for key, value in part.items() if key != 'type'})}"


def tool_names(tools: Sequence[Any]) -> str:
    """``weather(city, unit), search``: the tools with the names of their parameters."""
    return ", ".join(_tool_name(tool) for tool in tools)


def _tool_name(tool: Any) -> str:
    if not isinstance(tool, Mapping):
        return _compact(tool)
    schema = tool.get("schema")
    parameters = schema.get("properties") if isinstance(schema, Mapping) else None
    inner = f"({', '.join(map(str, parameters))})" if isinstance(parameters, Mapping) else ""
    return f"{tool.get('name') or tool.get('type') or 'tool'}{inner}"


def choice_text(choice: Any) -> str:
    """Which tools a model may or must call."""
    if not isinstance(choice, Mapping) or choice.get("mode") == "unknown":
        return one_line(_compact(choice))
    only = choice.get("tools")
    return one_line(f"{choice.get('mode')}{': ' + ', '.join(map(str, only)) if isinstance(only, list) else ''}")


def _compact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _pretty(body: str) -> str:
    try:
        return json.dumps(json.loads(body), ensure_ascii=False, indent=2)
    except ValueError:
        return body  # an event stream, or not whole


def _strings(value: Any) -> Iterator[str]:
    yield from (str(item) for item in value) if isinstance(value, list) else (str(value),)
