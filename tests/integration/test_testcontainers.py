"""Where a Docker engine answers, the tests run on a real container."""

import os
from urllib.parse import urlsplit

import docker
import psycopg
import pytest

from tests import servers


@pytest.mark.docker_only
def test_the_tests_run_on_a_container_where_an_engine_answers(server: servers.Server, database: str) -> None:
    if not servers.engine_answers():
        pytest.skip("no Docker engine answers within 2 s")
    if not server.name.startswith("container") and os.environ.get("ARCHIBALD_TEST_POSTGRES") != "docker":
        pytest.skip(f"this run uses another server: {server.name}")

    client = docker.from_env()
    port = str(urlsplit(database).port)
    [container] = [
        each
        for each in client.containers.list()
        if any(place["HostPort"] == port for place in each.ports.get("5432/tcp") or [])
    ]
    client.close()
    assert servers.IMAGE in container.image.tags
    with psycopg.connect(database) as connection:
        assert connection.info.server_version // 10000 == 18
        assert connection.execute("SELECT to_regclass('archibald.jobs')::text").fetchone() == ("archibald.jobs",)
