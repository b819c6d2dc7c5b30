"""The databases that tests get are their own."""

import os

import psycopg

from tests.servers import Server


def test_each_database_is_a_fresh_copy(server: Server) -> None:
    with psycopg.connect(server.create_database("source")) as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS n")
    copy = server.create_database("copy", template="source")
    with psycopg.connect(copy, autocommit=True) as connection:
        connection.execute("INSERT INTO t VALUES (2)")
    with psycopg.connect(server.dsn("source"), autocommit=True) as connection:
        assert connection.execute("SELECT n FROM t").fetchall() == [(1,)]
    server.drop_database("copy")
    server.drop_database("source")


def test_a_database_is_dropped_while_somebody_is_connected(server: Server) -> None:
    left_open = psycopg.connect(server.create_database("in_use"))
    server.drop_database("in_use")
    left_open.close()


def test_there_is_room_for_hundreds_of_connections(server: Server) -> None:
    with psycopg.connect(server.admin_dsn) as connection:
        assert connection.execute("SELECT current_setting('max_connections')::int >= 200").fetchone() == (True,)


def test_an_empty_database_has_no_schema(empty_database: str) -> None:
    with psycopg.connect(empty_database) as connection:
        assert connection.execute("SELECT to_regnamespace('archibald')").fetchone() == (None,)


def test_no_real_database_can_be_reached_through_the_environment() -> None:
    assert not {"DATABASE_URL", "ARCHIBALD_DATABASE_URL", "PGHOST", "PGSERVICE"} & set(os.environ)
