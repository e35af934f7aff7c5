"""The read side, on both databases: lists and their pages, what waits, what changed since."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from otel_chatdebug.records import AttemptRank, Record
from otel_chatdebug.status import Status
from otel_chatdebug.tables import database, liveness, merge, migrations, queries, schema
from otel_chatdebug.tables.queries import RunFilter, Where, rows
from otel_chatdebug.tables.queries import following as following_module
from otel_chatdebug.tables.queries import runs as runs_module
from tests.support.records import NOW, attempt_content, attempt_record, run_record, step_content, step_record

SECOND = 1_000_000


@pytest.fixture
def writing(database_url: str) -> Iterator[Engine]:
    engine = database.open_engine(database_url)
    migrations.upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def engine(writing: Engine, database_url: str) -> Iterator[Engine]:
    engine = queries.open_for_reading(database_url)
    yield engine
    engine.dispose()


def write(engine: Engine, *batch: Record) -> None:
    with engine.begin() as connection:
        merge.write(connection, batch)


def ids(page: Any) -> list[str]:
    return [row["id"] for row in page]


def done(id: str, **more: Any) -> Record:
    return run_record(id, **({"status": Status.COMPLETED, "rank": 3, "finished_at": NOW + SECOND} | more))


def test_pages_go_forth_and_back_and_stay_right_when_runs_are_added(writing: Engine, engine: Engine) -> None:
    write(writing, *(run_record(f"{number}", started_at=NOW + number // 3) for number in range(8)))
    first = queries.list_runs(engine, limit=3)
    assert ids(first) == ["7", "6", "5"]
    assert first.newer is None
    write(writing, run_record("late", started_at=NOW + 9), run_record("55", started_at=NOW + 1))
    second = queries.list_runs(engine, limit=3, cursor=first.older)
    assert ids(second) == ["4", "3", "2"], "what is new stands before the cursor"
    third = queries.list_runs(engine, limit=3, cursor=second.older)
    assert ids(third) == ["1", "0"]
    assert third.older is None
    back = queries.list_runs(engine, limit=3, cursor=third.newer)
    assert ids(back) == ["4", "3", "2"]
    front = queries.list_runs(engine, limit=3, cursor=back.newer)
    assert ids(front) == ["6", "55", "5"]
    newest = queries.list_runs(engine, limit=3, cursor=front.newer)
    assert (ids(newest), newest.newer) == (["late", "7"], None)
    assert ids(queries.list_runs(engine, limit=3, cursor=newest.older)) == ["6", "55", "5"]


@pytest.mark.parametrize("cursor", ["", "x", "é", "LTE", "KzEuYQ==x", "LS05OTk5OTk5OTk5OTk5OTk5OTk5OS5h"])
def test_a_cursor_of_somebody_else_is_refused(cursor: str, engine: Engine) -> None:
    with pytest.raises(queries.BadCursor, match="first page"):
        queries.list_runs(engine, cursor=cursor)


def test_runs_are_found_by_each_filter_and_by_all_together(writing: Engine, engine: Engine) -> None:
    at = schema.EPOCH + timedelta(microseconds=NOW)
    whole: dict[str, Any] = {
        "chat_id": "c",
        "status": Status.ERROR,
        "rank": 2,
        "kind": "title_generation",
        "model": "gpt-5-mini",
        "started_at": NOW,
        "summary": {"first_message": "Warum ist der Himmel BLÄUER 50%_'?"},
        "error": {"type": "overloaded", "message": "Überlast"},
    }
    write(writing, run_record("it", **whole))
    for name, other in [
        ("chat_id", {"chat_id": "C"}),
        ("status", {"status": Status.COMPLETED, "rank": 3}),
        ("kind", {"kind": "chat_turn"}),
        ("model", {"model": "gpt-5"}),
        ("since", {"started_at": NOW - 1}),
        ("until", {"started_at": NOW + 1}),
        ("text", {"summary": {"other": "bläuer 50%_'"}}),
        ("error", {"error": None}),
    ]:
        write(writing, run_record(f"not by {name}", **(whole | other)))
    one: dict[str, Any] = {
        "chat_id": "c",
        "status": "error",
        "kind": "title_generation",
        "model": "gpt-5-mini",
        "since": at,
        "until": at + timedelta(microseconds=1),
        "text": "bläuer 50%_'",
        "error": "ÜBERL",
    }
    everybody = {"it", *(f"not by {name}" for name in one)}
    for name, value in one.items():
        assert set(ids(queries.list_runs(engine, RunFilter(**{name: value})))) == everybody - {f"not by {name}"}
    assert ids(queries.list_runs(engine, RunFilter(**one))) == ["it"]
    assert ids(queries.list_runs(engine, RunFilter(text="%"))) == ids(queries.list_runs(engine, RunFilter(text="50%")))


def test_an_error_is_found_in_steps_and_attempts_too(writing: Engine, engine: Engine) -> None:
    write(
        writing,
        done("well"),
        done("step"),
        step_record("s", run_id="step", error={"type": "a", "message": "refused here"}),
        done("attempt"),
        step_record("t", run_id="attempt"),
        attempt_record("a", run_id="attempt", step_id="t", error={"type": "rate_limit_error"}),
    )
    assert ids(queries.list_runs(engine, RunFilter(error="RATE_limit"))) == ["attempt"]
    assert ids(queries.list_runs(engine, RunFilter(error="refused"))) == ["step"]
    assert ids(queries.list_runs(engine, RunFilter(error=""))) == ["step", "attempt"]


def test_a_search_that_gives_up_goes_on_where_it_stopped(
    writing: Engine, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_module, "CHUNK", 4)
    summary = {2: {"first_message": "Needle"}, 30: {"first_message": "needles"}}
    write(writing, *(run_record(f"{n:02}", started_at=NOW + n, summary=summary.get(n)) for n in range(40)))
    assert ids(queries.list_runs(engine, RunFilter(text="needle"))) == ["30", "02"]
    found, cursor, pages = [], None, 0
    while True:
        page = queries.list_runs(engine, RunFilter(text="needle"), cursor=cursor, most_scanned=10)
        found, cursor, pages = [*found, *ids(page)], page.older, pages + 1
        if cursor is None:
            break
    assert (found, pages) == (["30", "02"], 5)
    page = queries.list_runs(engine, RunFilter(text="needle"), limit=1)
    assert ids(queries.list_runs(engine, RunFilter(text="needle"), limit=1, cursor=page.older)) == ["02"]
    assert page.older is not None


def test_chats_come_by_their_newest_run_with_counts(writing: Engine, engine: Engine) -> None:
    write(
        writing,
        done("a1", chat_id="a", started_at=NOW),
        done("a2", chat_id="a", started_at=NOW + 5, status=Status.ERROR, rank=2),
        done("a3", chat_id="a", started_at=NOW + 5),
        run_record("b1", chat_id="Bär", started_at=NOW + 3),
        run_record("nobody's", started_at=NOW + 9),
    )
    chats = queries.list_chats(engine)
    assert [(chat["chat_id"], chat["runs"], chat["latest"]["id"]) for chat in chats] == [
        ("a", 3, "a3"),
        ("Bär", 1, "b1"),
    ]
    assert {name: chats[0][name] for name in Status} == {"in_progress": 0, "interrupted": 0, "error": 1, "completed": 2}
    assert chats[0]["first_started_at"] == queries.iso(NOW)
    page = queries.list_chats(engine, limit=1)
    assert [chat["chat_id"] for chat in queries.list_chats(engine, limit=1, cursor=page.older)] == ["Bär"]
    assert [chat["chat_id"] for chat in queries.list_chats(engine, text="BÄR")] == ["Bär"]
    json.dumps(chats.rows)


def test_facets_name_what_there_is(writing: Engine, engine: Engine) -> None:
    assert queries.facets(engine).models == ()
    write(writing, *(run_record(f"{n}", kind=f"kind {n % 3}", model=["m", "n", None][n % 3]) for n in range(9)))
    assert queries.facets(engine) == queries.Facets(("kind 0", "kind 1", "kind 2"), ("m", "n"))


def test_ids_are_found_by_their_beginning(writing: Engine, engine: Engine) -> None:
    write(writing, run_record("abc1"), run_record("abd2"), run_record("abd"), step_record("abd2f", run_id="abc1"))
    write(writing, step_record("5", run_id="abc1"), attempt_record("77", step_id="5", run_id="abc1"))
    assert queries.find_run(engine, " ABC ") == "abc1"
    assert queries.find(engine, "7") == ("attempt", "77", "abc1")
    assert queries.find(engine, "5") == ("step", "5", "abc1")
    assert queries.find(engine, "abd2") == ("run", "abd2", "abd2")
    with pytest.raises(queries.Ambiguous, match="abc1, abd, abd2"):
        queries.find_run(engine, "ab")
    with pytest.raises(queries.Ambiguous, match="run abc1, run abd, run abd2, step abd2f"):
        queries.find(engine, "ab")
    for nobody in ("x", "", "ab%", "_bc1", "ab\0", "a\ud800", "\U0010ffff"):
        with pytest.raises(queries.NotFound, match="otel-chatdebug runs"):
            queries.find_run(engine, nobody)


def test_content_is_loaded_on_demand_and_in_pieces(writing: Engine, engine: Engine) -> None:
    messages = [{"role": "user", "parts": [{"type": "text", "text": f"é{n}"}]} for n in range(5)]
    write(
        writing,
        run_record(),
        step_record(),
        attempt_record(),
        step_content(normalized_request={"messages": messages}, normalized_response=None),
        attempt_content(request_headers=[["a", "b"]], response_body="0123456789é"),
    )
    run = queries.load_run(engine, "run", content=False)
    assert not {"normalized_request", "request_body"} & (run["steps"][0].keys() | run["steps"][0]["attempts"][0].keys())
    assert queries.load_run(engine, "run")["steps"][0]["normalized_request"] == {"messages": messages}
    content = queries.load_attempt_content(engine, "attempt")
    assert content is not None
    assert (content["request_headers"], content["request_body"]) == ([["a", "b"]], None)
    assert queries.load_step_content(engine, "step") == {
        "normalized_request": {"messages": messages},
        "normalized_response": None,
    }
    assert queries.load_attempt_content(engine, "nobody") is queries.load_step_content(engine, "nobody") is None

    pieces, offset = [], 0
    while offset is not None:
        piece = queries.load_body(engine, "attempt", "response_body", offset=offset, length=4)
        assert piece is not None
        pieces.append(piece.text)
        offset = piece.next  # type: ignore[assignment]
    assert pieces == ["0123", "4567", "89é"]
    beyond = queries.load_body(engine, "attempt", "response_body", offset=99)
    assert (beyond and beyond.next) is None
    assert queries.load_body(engine, "attempt", "request_body") is None
    part = queries.load_messages(engine, "step", "request", offset=2, limit=2)
    assert part is not None
    assert (list(part.messages), part.total, part.next) == (messages[2:4], 5, 4)
    assert queries.load_messages(engine, "step", "response") is None


def test_what_waits_is_told_with_where_and_since_when(writing: Engine, engine: Engine) -> None:
    with writing.connect() as connection:
        now = rows.now(connection)

    def ago(seconds: float) -> int:
        return now - round(seconds * SECOND)

    def step(name: str, **more: Any) -> list[Record]:
        return [
            run_record(name, chat_id=f"chat of {name}", started_at=ago(900)),
            step_record(f"{name}-s", **({"run_id": name, "started_at": ago(800)} | more)),
        ]

    def attempt(name: str, number: int = 1, **more: Any) -> Record:
        known = {"step_id": f"{name}-s", "run_id": name, "number": number, "started_at": ago(700)}
        return attempt_record(f"{name}-{number}", **(known | more))

    ended = {"status": Status.ERROR, "rank": AttemptRank.FINAL, "finished_at": ago(600), "error": {"type": "x"}}
    write(
        writing,
        run_record("before", started_at=ago(900)),
        *step("headers"),
        attempt("headers"),
        *step("body"),
        attempt("body", response_status=200),
        *step("streaming"),
        attempt("streaming", response_status=200, first_byte_at=ago(650), last_byte_at=ago(41), bytes_received=7),
        *step("nothing sent"),
        *step("between"),
        attempt("between", 1, **(ended | {"finished_at": ago(690)})),
        attempt("between", 2, **ended),
        *step("unclosed"),
        attempt("unclosed", status=Status.COMPLETED, rank=AttemptRank.PROVISIONAL, finished_at=ago(500)),
        *step("tool", status=Status.COMPLETED, rank=3, finished_at=ago(400)),
        done("over", started_at=ago(900)),
    )
    found = {waiting["run_id"]: waiting for waiting in queries.list_waiting(engine)}
    assert {name: (one["where"], round(one["idle_seconds"] / 10)) for name, one in found.items()} == {
        "before": (Where.BEFORE_STEP, 90),
        "headers": (Where.HEADERS, 70),
        "body": (Where.BODY, 70),
        "streaming": (Where.STREAMING, 4),
        "nothing sent": (Where.BEFORE_ATTEMPT, 80),
        "between": (Where.BETWEEN_ATTEMPTS, 60),
        "unclosed": (Where.UNCLOSED, 50),
        "tool": (Where.BETWEEN_STEPS, 40),
    }
    assert found["between"]["attempt_id"] is None
    assert (found["between"]["attempt_number"], found["between"]["error"]) == (2, {"type": "x"})
    assert found["headers"]["attempt_id"] == "headers-1"
    assert queries.list_waiting(engine)[0]["run_id"] == "before", "what waits longest comes first"
    assert {one["run_id"] for one in queries.list_waiting(engine, idle=750)} == {"before", "nothing sent"}
    assert [one["run_id"] for one in queries.list_waiting(engine, chat_id="chat of body")] == ["body"]
    assert [one["run_id"] for one in queries.list_waiting(engine, run_id="tool")] == ["tool"]
    assert not any(one["is_stale"] for one in found.values())
    with writing.begin() as connection:
        connection.execute(schema.attempts.update().values(heartbeat_at=ago(30)))
    stale = {one["run_id"] for one in queries.list_waiting(engine, stale_after=20) if one["is_stale"]}
    assert stale == {"headers", "body", "streaming"}, "the heartbeat of the innermost row counts"
    json.dumps(found)


def test_several_requests_at_once_wait_one_by_one(writing: Engine, engine: Engine) -> None:
    write(writing, run_record(), step_record("s"), step_record("t", step_number=2))
    write(writing, attempt_record("a", step_id="s"), attempt_record("b", step_id="t"))
    assert {one["attempt_id"] for one in queries.list_waiting(engine)} == {"a", "b"}


def test_a_follower_tells_each_change_once(writing: Engine, engine: Engine) -> None:
    write(writing, run_record("old"))
    follower = queries.Follower(engine)
    assert not follower.poll()
    write(writing, run_record("new", chat_id="c"), step_record(run_id="new"), attempt_record(run_id="new"))
    changes = follower.poll()
    assert (ids(changes.runs), ids(changes.steps), ids(changes.attempts)) == (["new"], ["step"], ["attempt"])
    assert changes.runs[0]["chat_id"] == "c"
    assert not follower.poll()
    with writing.begin() as connection:
        liveness.heartbeat(connection, runs=["new", "old"])
    assert not follower.poll(), "a heartbeat is no change"
    write(writing, attempt_record(run_id="new", updated_at=NOW - 1))
    assert not follower.poll(), "what lost the merge is no change"
    write(writing, attempt_record(run_id="new", updated_at=NOW + 1, bytes_received=5))
    changes = follower.poll()
    assert (ids(changes.runs), [row["bytes_received"] for row in changes.attempts]) == ([], [5])
    with writing.begin() as connection:
        connection.execute(schema.runs.update().values(heartbeat_at=NOW))
    liveness.finalize_stale(writing, 60.0)
    assert {row["status"] for row in follower.poll().runs} == {"interrupted"}, "the sweep, which sets updated_at back"


def test_a_follower_sees_a_transaction_that_commits_late(postgres_url: str) -> None:
    """Its rows carry the time at which they were written; others were committed and told meanwhile.

    On SQLite no two transactions write at once.
    """
    one, other = database.open_engine(postgres_url), database.open_engine(postgres_url)
    migrations.upgrade(one)
    reading = queries.open_for_reading(postgres_url)
    follower = queries.Follower(reading)
    follower.poll()
    with other.begin() as late:
        merge.write(late, [run_record("late")])
        write(one, run_record("early"))
        assert ids(follower.poll().runs) == ["early"]
    assert ids(follower.poll().runs) == ["late"]
    for engine in (one, other, reading):
        engine.dispose()


def test_a_follower_goes_on_from_a_cursor_and_by_chat_or_run(writing: Engine, engine: Engine) -> None:
    first = queries.Follower(engine)
    cursor = first.poll().cursor
    write(
        writing, run_record("a", chat_id="a"), run_record("b", chat_id="b"), step_record("s", run_id="b", chat_id="b")
    )
    assert set(ids(queries.Follower(engine, cursor=cursor).poll().runs)) == {"a", "b"}
    assert ids(queries.Follower(engine, chat_id="a", cursor=cursor).poll().runs) == ["a"]
    by_run = queries.Follower(engine, run_id="b", cursor=cursor).poll()
    assert (ids(by_run.runs), ids(by_run.steps)) == (["b"], ["s"])
    for bad in ("", "x", "-1", "9" * 30, "٣"):
        with pytest.raises(queries.BadCursor):
            queries.Follower(engine, cursor=bad)


def test_a_follower_that_was_away_gets_it_in_parts(
    writing: Engine, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following_module, "MOST_CHANGES", 3)
    follower = queries.Follower(engine)
    follower.poll()
    write(writing, *(run_record(f"{n}") for n in range(8)))
    write(writing, step_record("s", run_id="0"))
    seen, steps, polls = [], [], 0
    while changes := follower.poll():
        assert changes.more == (polls < 2)
        seen, steps, polls = [*seen, *ids(changes.runs)], [*steps, *ids(changes.steps)], polls + 1
    assert (sorted(seen), steps, polls) == ([f"{n}" for n in range(8)], ["s"], 3)


def test_a_clock_that_is_set_back_hides_nothing(writing: Engine, engine: Engine) -> None:
    follower = queries.Follower(engine)
    follower.poll()
    write(writing, run_record("ahead"))
    with writing.begin() as connection:
        connection.execute(schema.runs.update().values(changed_at=NOW * 2))
    assert ids(follower.poll().runs) == ["ahead"]
    write(writing, run_record("after"))
    assert ids(follower.poll().runs) == ["after"]


def test_reading_goes_on_while_another_writes(writing: Engine, engine: Engine) -> None:
    """A list, a run and a poll, each again and again beside a writer: no error, and at the end all was told."""
    follower, told = queries.Follower(engine), set[str]()
    follower.poll()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for n in range(60):
                write(writing, run_record(f"{n:02}", started_at=NOW + n), step_record(f"s{n}", run_id=f"{n:02}"))
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        told.update(ids(follower.poll().runs))
        for run in queries.list_runs(engine, limit=2):
            queries.load_run(engine, run["id"])
        queries.list_waiting(engine)
    thread.join()
    told.update(ids(follower.poll().runs))
    assert (failures, len(told)) == ([], 60)
