"""The PostgreSQL of the tests is a real one, and does what the tests of the tables need of it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psycopg
import pytest
from sqlalchemy import create_engine, text

from tests.support.postgres import Postgres


def test_each_test_has_an_empty_database_of_its_own(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE mine (id integer)"))
        assert connection.execute(text("SELECT count(*) FROM mine")).scalar_one() == 0
    engine.dispose()


def test_an_own_server_can_be_killed_and_finds_its_data_again(own_postgres: Callable[..., Postgres]) -> None:
    server = own_postgres()
    server.sql("CREATE TABLE kept (id integer)", "INSERT INTO kept VALUES (1)")
    server.kill()
    with pytest.raises(psycopg.OperationalError):
        server.sql("SELECT 1")
    server.start()
    assert server.sql("SELECT id FROM kept") == [(1,)]
    server.stop()
    server.start()
    assert server.sql("SELECT id FROM kept") == [(1,)]


def test_a_frozen_server_answers_once_it_is_thawed(own_postgres: Callable[..., Postgres]) -> None:
    server = own_postgres()
    answers: list[object] = []
    server.freeze()
    asking = threading.Thread(target=lambda: answers.extend(server.sql("SELECT 1")))
    asking.start()
    asking.join(0.2)
    assert answers == []
    server.thaw()
    asking.join()
    assert answers == [(1,)]
