"""Settings: each has its default, an empty variable is an unset one, and a bad value is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from archibald_pgq import config
from archibald_pgq.errors import ConfigError

DEFAULTS = {
    "database_url": None,
    "worker_concurrency": 10,
    "direct_url": None,
    "listen": True,
    "app": None,
    "data_dir": None,
    "pg_bin": None,
    "shutdown_grace": 30.0,
    "dedup_window": 30.0,
    "agent_backlog": None,
    "lease": 6.0,
    "failover": False,
    "reserved_consumers": 2,
    "preempt_grace": 5.0,
    "max_preemptions": 5,
    "max_wait": 900.0,
    "max_losses": 3,
    "browsers": 3,
    "browser_contexts": 5,
    "chromium": None,
    "login_budget": 60,
    "browser_trace": False,
    "retention_days": 30,
}


def test_without_variables_every_setting_has_its_default() -> None:
    assert config.load({}) == config.Settings(**DEFAULTS)  # type: ignore[arg-type]


def test_an_empty_variable_counts_as_unset() -> None:
    names = [setting.name for setting in config.SETTINGS.values()]
    assert config.load(dict.fromkeys([*names, "ARCHIBALD_DATABASE_URL", "DATABASE_URL"], "")) == config.load({})


def test_every_setting_is_read_from_its_own_variable() -> None:
    values = {
        "ARCHIBALD_DATABASE_URL": "postgresql://a/b",
        "WORKER_CONCURRENCY": "7",
        "ARCHIBALD_DIRECT_URL": "postgresql://c/b",
        "ARCHIBALD_LISTEN": "0",
        "ARCHIBALD_APP": "shop.tasks:app",
        "ARCHIBALD_DATA_DIR": "/data",
        "ARCHIBALD_PG_BIN": "/bin",
        "ARCHIBALD_SHUTDOWN_GRACE": "1.5",
        "ARCHIBALD_DEDUP_WINDOW": "0",
        "ARCHIBALD_AGENT_BACKLOG": "500",
        "ARCHIBALD_LEASE": "2.25",
        "ARCHIBALD_FAILOVER": "1",
        "ARCHIBALD_RESERVED_CONSUMERS": "3",
        "ARCHIBALD_PREEMPT_GRACE": "0.5",
        "ARCHIBALD_MAX_PREEMPTIONS": "0",
        "ARCHIBALD_MAX_WAIT": "60",
        "ARCHIBALD_MAX_LOSSES": "9",
        "ARCHIBALD_BROWSERS": "4",
        "ARCHIBALD_BROWSER_CONTEXTS": "6",
        "ARCHIBALD_CHROMIUM": "/opt/chromium",
        "ARCHIBALD_LOGIN_BUDGET": "12",
        "ARCHIBALD_BROWSER_TRACE": "1",
        "ARCHIBALD_RETENTION_DAYS": "90",
    }
    assert {*values} == {*(setting.name for setting in config.SETTINGS.values()), "ARCHIBALD_DATABASE_URL"}
    assert config.load(values) == config.Settings(
        database_url="postgresql://a/b",
        worker_concurrency=7,
        direct_url="postgresql://c/b",
        listen=False,
        app="shop.tasks:app",
        data_dir=Path("/data"),
        pg_bin=Path("/bin"),
        shutdown_grace=1.5,
        dedup_window=0.0,
        agent_backlog=500,
        lease=2.25,
        failover=True,
        reserved_consumers=3,
        preempt_grace=0.5,
        max_preemptions=0,
        max_wait=60.0,
        max_losses=9,
        browsers=4,
        browser_contexts=6,
        chromium=Path("/opt/chromium"),
        login_budget=12,
        browser_trace=True,
        retention_days=90,
    )


def test_our_own_url_goes_before_the_common_one() -> None:
    assert config.load({"DATABASE_URL": "b"}).database_url == "b"
    assert config.load({"DATABASE_URL": "b", "ARCHIBALD_DATABASE_URL": "a"}).database_url == "a"
    assert config.load({"DATABASE_URL": "b", "ARCHIBALD_DATABASE_URL": ""}).database_url == "b"


def test_the_environment_of_the_process_is_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_CONCURRENCY", "4")
    assert config.load().worker_concurrency == 4


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("10", 10), ("0042", 42), ("1000", 1000)])
def test_worker_concurrency_takes_ascii_digits_from_1_to_1000(text: str, value: int) -> None:
    assert config.load({"WORKER_CONCURRENCY": text}).worker_concurrency == value


@pytest.mark.parametrize(
    "text",
    ["0", "-1", "abc", "1_0", "１０", "١٠", " 10", "10 ", "10\n", "+10", "1e1", "10.0", "1001", "0x10", "9" * 400],  # noqa: RUF001
)
def test_worker_concurrency_of_anything_else_is_refused_with_name_value_and_range(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load({"WORKER_CONCURRENCY": text})
    assert str(caught.value) == (
        f"WORKER_CONCURRENCY is {text!r}; it must be a whole number from 1 to 1000, or unset for 10"
    )


@pytest.mark.parametrize(
    ("name", "allowed", "bad"),
    [
        (
            "ARCHIBALD_SHUTDOWN_GRACE",
            "a number of seconds from 0 to 3600",
            ["-1", "3601", "nan", "inf", "1e3", ".5", "5."],
        ),
        ("ARCHIBALD_DEDUP_WINDOW", "a number of seconds from 0 to 86400", ["-0", "86401", "NaN", "30s", "３０"]),  # noqa: RUF001
        ("ARCHIBALD_LEASE", "a number of seconds from 2 to 600", ["1.9", "601", "0", "six"]),
        ("ARCHIBALD_MAX_LOSSES", "a whole number from 1 to 100", ["0", "101", "-3", "3.0"]),
        ("ARCHIBALD_RETENTION_DAYS", "a whole number from 1 to 36500", ["0", "36501", "-30", "30.5", "30d", "forever"]),
        ("ARCHIBALD_DATA_DIR", "a path whose home folder is known", ["~no-such-user-here/data"]),
        ("ARCHIBALD_PG_BIN", "a path whose home folder is known", ["~no-such-user-here/bin"]),
    ],
)
def test_a_bad_value_is_one_sentence_that_names_variable_value_and_range(
    name: str, allowed: str, bad: list[str]
) -> None:
    for text in bad:
        with pytest.raises(ConfigError) as caught:
            config.load({name: text})
        assert str(caught.value).startswith(f"{name} is {text!r}; it must be {allowed}, or unset")
        assert not str(caught.value).endswith("for ")


def test_a_home_folder_is_expanded_and_a_path_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert config.load({"ARCHIBALD_DATA_DIR": "~/data"}).data_dir == tmp_path / "data"
    assert config.load({"ARCHIBALD_DATA_DIR": "data"}).data_dir == tmp_path / "data"
