"""What a recorded run looks like on a terminal."""

from __future__ import annotations

import copy
import io
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console, RenderableType

from otel_chatdebug import words
from otel_chatdebug.capture.states import EndReason
from otel_chatdebug.cli import render
from otel_chatdebug.cli import tree as tree_module

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NOW = START + timedelta(seconds=60)


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def text(role: str, *texts: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "text": text} for text in texts]}


STUCK: dict[str, Any] = {
    "id": "3f2a9c41" + "a" * 24,
    "kind": "chat_turn",
    "status": "in_progress",
    "chat_id": "c-42",
    "started_at": at(0),
    "heartbeat_at": at(58),
    "finished_at": None,
    "model": "gpt-5-mini",
    "error": None,
    "summary": {
        "first_message": "What is the weather?",
        "step_count": 2,
        "total_input_tokens": 1200,
        "total_output_tokens": 84,
    },
    "steps": [
        {
            "id": "a" * 16,
            "step_number": 1,
            "status": "completed",
            "model": "gpt-5-mini",
            "provider": "openai",
            "operation": "stream",
            "started_at": at(0),
            "finished_at": at(1.5),
            "error": None,
            "usage": {
                "input_tokens": 1200,
                "output_tokens": 84,
                "cache_read_tokens": 1024,
                "reasoning_tokens": 64,
            },
            "metadata": {"response_model": "gpt-5-mini-2025-08-07", "finish_reasons": ["tool_call"]},
            "normalized_request": {"messages": [text("system", "Be brief."), text("user", "What is\nthe weather?")]},
            "normalized_response": {
                "messages": [
                    {
                        "role": "assistant",
                        "parts": [
                            {"type": "text", "text": "Let me look."},
                            {"type": "tool_call", "name": "weather", "arguments": {"city": "Paris"}},
                        ],
                    }
                ]
            },
            "attempts": [
                {
                    "id": "b" * 16,
                    "number": 1,
                    "status": "error",
                    "method": "POST",
                    "url": "http://127.0.0.1/v1/chat/completions",
                    "response_status": 429,
                    "end_reason": "early_close",
                    "started_at": at(0),
                    "finished_at": at(0.02),
                    "bytes_received": 0,
                    "events": 0,
                    "error": {"type": "requests", "message": "Rate limit reached", "retry_after": "1"},
                    "request_headers": [["authorization", "[REDACTED]"]],
                    "request_body": '{"model":"gpt-5-mini"}',
                },
                {
                    "id": "c" * 16,
                    "number": 2,
                    "status": "completed",
                    "method": "POST",
                    "url": "http://127.0.0.1/v1/chat/completions",
                    "response_status": 200,
                    "end_reason": "body_close",
                    "started_at": at(0.1),
                    "first_byte_at": at(0.4),
                    "last_byte_at": at(1.5),
                    "finished_at": at(1.5),
                    "bytes_received": 2345,
                    "events": 12,
                    "error": None,
                },
            ],
        },
        {
            "id": "d" * 16,
            "step_number": 2,
            "status": "in_progress",
            "model": "gpt-5-mini",
            "started_at": at(2),
            "finished_at": None,
            "normalized_response": {"messages": [text("assistant", "In Paris it")]},
            "attempts": [
                {
                    "id": "e" * 16,
                    "number": 1,
                    "status": "in_progress",
                    "method": "POST",
                    "url": "http://127.0.0.1/v1/chat/completions",
                    "response_status": 200,
                    "started_at": at(2),
                    "first_byte_at": at(2.2),
                    "last_byte_at": at(4),
                    "finished_at": None,
                    "bytes_received": 812,
                    "events": 5,
                }
            ],
        },
    ],
}


@pytest.fixture
def stuck() -> dict[str, Any]:
    return copy.deepcopy(STUCK)


def printed(renderable: RenderableType, width: int = 140, *, colours: bool = False) -> str:
    file = io.StringIO()
    Console(file=file, width=width, markup=False, highlight=False, force_terminal=colours).print(renderable)
    return file.getvalue()


def tree(run: dict[str, Any], *, now: datetime = NOW, **options: Any) -> str:
    return printed(tree_module.run_tree(run, now=now, **options))


def test_the_tree_tells_the_whole_story(stuck: dict[str, Any]) -> None:
    """Runs hold steps, steps hold attempts and what was said, and each says how it ended, or since when it waits."""
    assert "\n".join(line.rstrip() for line in tree(stuck).splitlines()[2:]) == (
        """\
├── step 1  gpt-5-mini  ✓ completed  1.5 s
│   openai · stream · answered by gpt-5-mini-2025-08-07 · 1,200 in (1,024 cached) → 84 out (64 reasoning) · finished with tool_call
│       ━━······································································
│   ├── system: Be brief.
│   ├── user: What is
│   │   the weather?
│   ├── attempt 1  POST http://127.0.0.1/v1/chat/completions  429  ✗ error  20 ms
│   │   closed before its end · 0 B
│   │   requests: Rate limit reached (retry after 1 s)
│   │   ─·······································································
│   ├── attempt 2  POST http://127.0.0.1/v1/chat/completions  200  ✓ completed  1.4 s
│   │   read to its end and closed · first byte after 300 ms · 2.3 kB · 12 events
│   │   ━━······································································
│   └── assistant: Let me look.
│       [calls weather({"city": "Paris"})]
└── step 2  gpt-5-mini  ● in_progress  58.0 s so far
        ··━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━▶
    ├── attempt 1  POST http://127.0.0.1/v1/chat/completions  200  ● in_progress  58.0 s so far
    │   first byte after 200 ms · 812 B · 5 events
    │   nothing has come for 56.0 s
    │   ··─━━╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌▶
    └── assistant so far: In Paris it"""  # noqa: E501
    )
    head = tree(stuck).splitlines()[:2]
    assert head[0].rstrip() == f"chat_turn  {stuck['id']}  ● in_progress  1 min 00 s so far"
    assert head[1].startswith("chat c-42 · started ")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_bars_are_drawn_on_one_axis_and_fit(stuck: dict[str, Any], width: int) -> None:
    lines = printed(tree_module.run_tree(stuck, now=NOW, content=False), width).splitlines()
    bars = [line for line in lines if re.search(r"[·─━╌▶]{10,}$", line)]
    assert len(bars) == 5, "two steps with three attempts"
    begins = {re.search(r"[·─━╌▶]", line[8:]).start() + 8 for line in bars}  # type: ignore[union-attr]
    assert (begins, {len(line) for line in bars}) == ({8}, {min(width, 80)})
    narrow = printed(tree_module.run_tree(stuck, now=NOW, content=False), 16)
    assert "━" not in narrow


def test_tools_options_and_warnings_are_shown(stuck: dict[str, Any]) -> None:
    request = stuck["steps"][0]["normalized_request"]
    schema = {"type": "object", "properties": {"city": {}, "unit": {}}}
    request["tools"] = [{"type": "function", "name": "weather", "schema": schema}, {"type": "unknown", "name": "web"}]
    request["tool_choice"] = {"mode": "required", "tools": ["weather"]}
    request |= {"options": {"max_tokens": 5, "stop": ["a"]}, "provider_options": {"seed": 7}}
    stuck["steps"][0]["normalized_response"]["warnings"] = [{"type": "unknown_event", "message": "odd"}]
    output = tree(stuck)
    assert '── options: max_tokens 5 · stop ["a"]' in output
    assert "── 2 tools (required: weather): weather(city, unit), web" in output
    assert "── warning: unknown_event: odd" in output
    assert "seed" not in output
    full = tree(stuck, full=True)
    assert "provider options: seed 7" in full
    assert '"properties": {' in full


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "text", "text": "abc", "truncated": True, "length": 12_000}, "abc [cut: it had 12,000 characters]"),
        ({"type": "reasoning", "text": "hm"}, "[reasoning] hm"),
        ({"type": "refusal", "text": "no"}, "[refusal] no"),
        ({"type": "tool_result", "id": "1", "content": "ok"}, "[result of 1] ok"),
        (
            {"type": "tool_result", "id": "1", "name": "t", "error": True, "content": [{"type": "text", "text": "x"}]},
            "[error of t] x",
        ),
        ({"type": "image", "media_type": "image/png", "bytes": 1200, "url": None}, "[image image/png 1.2 kB]"),
        ({"type": "file", "media_type": None, "bytes": None, "text": "said"}, "[file] said"),
        ({"type": "unknown", "raw": {"a": 1}}, '[unknown] {"raw": {"a": 1}}'),
        ("bare", "bare"),
        (7, "7"),
        (None, ""),
    ],
)
def test_parts_of_messages(part: Any, expected: str) -> None:
    assert tree_module.part_text(part) == expected


@pytest.mark.parametrize("content", ["text", ["a"], {"messages": "x"}, {"other": 1}, 5])
def test_a_shape_that_is_not_known_is_shown_as_it_is(stuck: dict[str, Any], content: Any) -> None:
    stuck["steps"][1]["normalized_request"] = content
    assert (content if isinstance(content, str) else json.dumps(content)) in tree(stuck)


def test_without_content_nothing_that_was_said_is_shown(stuck: dict[str, Any]) -> None:
    """But for the first words of the run, by which one knows it."""
    output = tree(stuck, content=False)
    assert "“What is the weather?” · chat c-42" in output
    assert "Let me look" not in output
    assert "In Paris" not in output
    assert "attempt 2" in output


def test_an_error_is_told_once_where_it_happened(stuck: dict[str, Any]) -> None:
    error = {"type": "ReadError", "message": "it broke"}
    step = stuck["steps"][1]
    step["error"] = step["attempts"][0]["error"] = error
    assert tree(stuck).count("ReadError: it broke") == 1
    step["error"] = {"type": "openai.APIError", "message": "another"}
    assert "openai.APIError: another" in tree(stuck)
    assert tree(stuck).count("ReadError: it broke") == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, ""),
        ("text", "text"),
        ({"type": "429", "message": "HTTP status 429", "status_code": 429, "retry_after": "1"}, "429: HTTP status 429"),
        ({"type": "incomplete_stream"}, "incomplete_stream"),
        ({"type": "a", "message": "b\nc", "code": "d"}, "a: b c (code d)"),
        (
            {"retry_after": "Wed, 21 Oct 2026 07:28:00 GMT", "type": "x"},
            "x (retry after Wed, 21 Oct 2026 07:28:00 GMT)",
        ),
    ],
)
def test_errors(error: Any, expected: str) -> None:
    assert words.error_text(error).removesuffix(" (retry after 1 s)") == expected


def test_no_tokens_are_shown_where_none_were_counted(stuck: dict[str, Any]) -> None:
    stuck["summary"] |= {"total_input_tokens": 0, "total_output_tokens": 0}
    assert "0 in → 0 out" not in tree(stuck)
    assert "0 / 0" not in printed(render.runs_table([stuck], width=200, now=NOW), 200)


def test_full_shows_headers_bodies_and_ids_and_cuts_nothing(stuck: dict[str, Any]) -> None:
    stuck["steps"][0]["normalized_request"]["messages"] = [text("user", f"message {number}") for number in range(9)]
    stuck["steps"][1]["normalized_response"]["messages"] = [text("assistant", "x" * 1200 + "THE END")]
    short = tree(stuck)
    assert "6 earlier messages (--full shows all)" in short
    assert "message 5" not in short
    assert "message 6" in short
    assert "… (207 more characters, --full shows all)" in short
    full = tree(stuck, full=True)
    assert "THE END" in full
    assert "more character" not in full
    for expected in ("message 0", "authorization: [REDACTED]", '"model": "gpt-5-mini"', "b" * 16, "a" * 16):
        assert expected in full


def test_a_dead_process_is_told_with_what_to_do(stuck: dict[str, Any]) -> None:
    later = NOW + timedelta(seconds=600)
    assert tree(stuck, now=later).count("No sign of life from its process for 10 min 02 s") == 1
    assert "otel-chatdebug sweep" in tree(stuck, now=later)
    assert "No sign of life" not in tree(stuck, now=later, stale_after=1000)
    assert "No sign of life" not in tree(stuck)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"response_status": None, "last_byte_at": None, "first_byte_at": None}, "waiting for an answer for 58.0 s"),
        ({"last_byte_at": None, "first_byte_at": None}, "headers came, no byte of the body yet for 58.0 s"),
        ({"last_byte_at": at(4)}, "nothing has come for 56.0 s"),
    ],
)
def test_an_open_attempt_says_what_it_waits_for(stuck: dict[str, Any], changes: dict[str, Any], expected: str) -> None:
    stuck["steps"][1]["attempts"][0] |= changes
    assert expected in tree(stuck)


def test_a_stream_that_moves_is_not_called_stuck(stuck: dict[str, Any]) -> None:
    stuck["steps"][1]["attempts"][0]["last_byte_at"] = at(59)
    assert "nothing has come" not in tree(stuck)


def test_what_an_interrupted_step_has_said_is_marked(stuck: dict[str, Any]) -> None:
    stuck["steps"][1] |= {"status": "interrupted", "finished_at": at(5)}
    assert "assistant, not whole: In Paris it" in tree(stuck)


def test_rows_of_which_little_is_known_are_shown(stuck: dict[str, Any]) -> None:
    """A stub has no number, no content and no times but one; a run may have no step."""
    bare = {"id": "f" * 16, "status": "in_progress", "started_at": at(0)}
    stub = {**bare, "kind": "auto", "steps": [{**bare, "step_number": None, "attempts": [{**bare, "number": None}]}]}
    assert "step ?  unknown model  ● in_progress" in tree(stub)
    assert "no request was sent" in tree({**stub, "steps": [{**bare, "attempts": []}]})
    assert "no model call yet" in tree({**bare, "kind": "auto", "steps": []})


def test_every_end_reason_has_words() -> None:
    assert set(words.END_REASONS) == {str(reason) for reason in EndReason}


EVIL = "\x1b]0;evil\x07\x1b[2J\x9b31m\x7f\x00\r\u202eab\u2066\ud800"


def evil(value: Any) -> Any:
    """The same rows with escapes in every string, but for times and statuses."""
    if isinstance(value, dict):
        return {
            key: item if key.endswith("_at") or key in ("status", "type") else evil(item) for key, item in value.items()
        }
    if isinstance(value, list):
        return [evil(item) for item in value]
    return EVIL + value if isinstance(value, str) else value


def test_escapes_in_recorded_text_never_reach_the_terminal(stuck: dict[str, Any]) -> None:
    """Neither in the tree nor in the list nor in JSON: in no column."""
    wicked = evil(stuck)
    outputs = [tree(wicked, full=True), tree(wicked), printed(render.runs_table([wicked], width=200, now=NOW), 200)]
    outputs.append(words.clean_json(json.dumps(wicked, ensure_ascii=False)))
    for output in outputs:
        assert not set(output) & {sign for sign in EVIL if not sign.isascii() or not sign.isprintable()}
        assert "ab" in output
    assert json.loads(outputs[-1]) == wicked
    assert "␛]0;evil␇␛[2J�31m␡␀␍�ab��" in outputs[0]


def test_colours_are_only_those_of_the_renderer(stuck: dict[str, Any]) -> None:
    """With colours on, the only escapes are rich's own (SGR), also around evil text."""
    output = printed(tree_module.run_tree(evil(stuck), now=NOW), colours=True)
    assert "\x1b[" in output
    assert "\x1b]" not in output
    assert "\x1b[2J" not in output


def test_the_list_has_a_line_for_each_run(stuck: dict[str, Any]) -> None:
    done = stuck | {"id": "3f2a9c41" + "b" * 24, "status": "completed", "finished_at": at(2.5)}
    lines = printed(render.runs_table([stuck, done], width=200, now=NOW), 200).splitlines()
    first, second = (line.split("   ") for line in lines if "3f2a" in line)
    assert [cell.strip() for cell in first if cell.strip()] == [
        "3f2a9c41a",
        f"{START.astimezone():%H:%M:%S}",
        "chat_turn",
        "c-42",
        "● in_progress",
        "1 min 00 s",
        "gpt-5-mini",
        "2",
        "1.2k / 84",
        "What is the weather?",
    ]
    assert second[0].strip() == "3f2a9c41b"


@pytest.mark.parametrize("width", [60, 80, 100, 120, 140, 200])
def test_the_list_fits_every_terminal(stuck: dict[str, Any], width: int) -> None:
    """Id, kind and status are whole at every width from 60 columns on, and no line is broken."""
    lines = printed(render.runs_table([stuck], width=width, now=NOW), width).splitlines()
    assert len([line for line in lines if "3f2a9c41" in line and "chat_turn" in line and "in_progress" in line]) == 1
    assert len(lines) == 5
    assert all(len(line) <= width for line in lines)
    if width >= 80:
        (row,) = (line for line in lines if "3f2a9c41" in line)
        assert "What is the w" in row, "which one it is can be told"
        assert "What is the weather?" in row or row.rstrip().endswith("…"), "what is cut says so"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0 ms"), (0.0204, "20 ms"), (0.9996, "1.0 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (7265, "2 h 01 min")],
)
def test_durations(seconds: float, expected: str) -> None:
    assert words.duration(seconds) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2345, "2.3 kB"), (123_456, "123 kB"), (999_999, "1.0 MB")],
)
def test_sizes(count: int, expected: str) -> None:
    assert words.size(count) == expected


@pytest.mark.parametrize(
    ("count", "expected"), [(0, "0"), (999, "999"), (1200, "1.2k"), (84_321, "84.3k"), (1_234_567, "1.23M")]
)
def test_short_counts(count: int, expected: str) -> None:
    assert words.short_count(count) == expected


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, ""),
        ({"input_tokens": 5}, "5 in"),
        ({"input_tokens": 0, "output_tokens": 1}, "0 in → 1 out"),
        ({"output_tokens": 9, "cache_creation_tokens": 3}, "9 out"),
        ({"input_tokens": 9, "cache_creation_tokens": 3}, "9 in (3 newly cached)"),
    ],
)
def test_a_count_that_is_not_known_is_not_shown(usage: Any, expected: str) -> None:
    assert words.usage_text(usage) == expected


def test_times_of_another_day_have_their_date() -> None:
    assert render.local_time(at(0), NOW) == f"{START.astimezone():%H:%M:%S}"
    assert render.local_time(at(-86400 * 3), NOW).startswith("2025-12-")
