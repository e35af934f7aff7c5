"""What is refused of a file that is imported, and where it says the mistake stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otel_chatdebug.tables import database, merge, migrations, transfer
from tests.support.records import attempt_content, attempt_record, run_record, step_content, step_record


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> str:
    engine = database.open_engine(f"sqlite:///{tmp_path_factory.mktemp('transfer') / 'tables.db'}")
    migrations.upgrade(engine)
    with engine.begin() as connection:
        merge.write(connection, [run_record(), step_record(), attempt_record(), step_content(), attempt_content()])
    file = "".join(transfer.export_runs(engine, ["run"]))
    engine.dispose()
    return file


def test_a_file_says_what_it_is(good: str) -> None:
    file = json.loads(good)
    assert (file["format"], file["version"]) == (transfer.FORMAT, transfer.VERSION)
    assert len(transfer.read_export(good)[0].records) == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        ("[]", "no export"),
        ('{"runs": []}', "no export"),
        (f'{{"format": "{transfer.FORMAT}", "version": "1", "runs": []}}', "version is '1'"),
        (f'{{"format": "{transfer.FORMAT}", "version": true, "runs": []}}', "version is True"),
        (f'{{"format": "{transfer.FORMAT}", "version": 99, "runs": []}}', r"version 99.*up to 1.*upgrade"),
        (f'{{"format": "{transfer.FORMAT}", "version": 1}}', "no list 'runs'"),
        (f'{{"format": "{transfer.FORMAT}", "version": 1, "runs": [7]}}', r"runs\[0\] is no object"),
    ],
)
def test_another_file_is_refused(text: str | bytes, said: str) -> None:
    with pytest.raises(transfer.BadExport, match=said):
        transfer.read_export(text)


def change(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda row: row.update(values)


@pytest.mark.parametrize(
    ("where", "wrong", "said"),
    [
        ("run", change(status="done"), r'runs\[0\].status is "done", which is not a status'),
        ("run", change(status=[]), "not a status"),
        ("run", change(id=None), r"runs\[0\].id is missing"),
        ("run", change(kind=5), r"runs\[0\].kind is 5, which is not a text"),
        ("run", change(started_at="yesterday"), "not a time"),
        ("run", change(started_at="2026-01-31T12:00:00"), "not a time"),
        ("run", change(started_at=5), "not a time"),
        ("run", change(rank=True), "not a whole number"),
        ("run", change(rank=2**15), "not a whole number"),
        ("run", change(heartbeat_at="x"), "heartbeat_at"),
        ("run", change(steps={}), r"runs\[0\].steps is no list"),
        ("step", change(run_id="other"), r"runs\[0\].steps\[0\].run_id is not the id of what it stands in"),
        ("step", change(content=[]), r"steps\[0\].content is no object"),
        ("attempt", change(step_id="other"), r"attempts\[0\].step_id is not"),
        ("attempt", change(bytes_received=2**63), "bytes_received"),
        ("attempt", change(response_status=2**31), "response_status"),
        ("attempt", change(duration_ms="1"), "not a number"),
        ("attempt", change(content={}), r"attempts\[0\].content"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(
    where: str, wrong: Callable[[dict[str, Any]], None], said: str, good: str
) -> None:
    file = json.loads(good)
    run = file["runs"][0]
    wrong({"run": run, "step": run["steps"][0], "attempt": run["steps"][0]["attempts"][0]}[where])
    with pytest.raises(transfer.BadExport, match=said):
        transfer.read_export(json.dumps(file))


def test_columns_of_a_later_version_do_no_harm(good: str, tmp_path: Path) -> None:
    file = json.loads(good)
    file["runs"][0]["invented_later"] = 1
    assert transfer.read_export(json.dumps(file)) == transfer.read_export(good)
