"""What may be given to a job: each refusal is one sentence that names the argument."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archibald_pgq.domain.payload import (
    MAX_DELAY,
    MAX_DEPTH,
    MAX_ID,
    MAX_JSON_BYTES,
    check_delay,
    check_job_id,
    check_key,
    check_kind,
    check_limit,
    check_payload,
    check_state,
    check_user_id,
    parse_payload,
    to_json,
)
from archibald_pgq.domain.states import State
from archibald_pgq.errors import InvalidJobError, UnknownJobError

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
)


def nested(depth: int) -> Any:
    """An object with `depth` levels of objects and lists, itself among them."""
    value: Any = 1
    for level in range(depth - 1):
        value = [value] if level % 2 else {"a": value}
    return {"a": value}


@settings(max_examples=40)
@given(st.dictionaries(TEXTS, VALUES))
def test_every_json_object_passes_unchanged(payload: dict[str, Any]) -> None:
    text = check_payload(payload)
    assert json.loads(text) == payload
    assert parse_payload(text) == payload


def test_a_mapping_is_an_object_too() -> None:
    assert check_payload(MappingProxyType({"a": 1})) == '{"a": 1}'


@pytest.mark.parametrize("value", [None, [], "text", 1, True, [{"a": 1}]])
def test_anything_but_an_object_is_refused(value: object) -> None:
    with pytest.raises(InvalidJobError, match="the payload must be a JSON object, such as"):
        check_payload(value)
    with pytest.raises(InvalidJobError, match="the payload must be a JSON object, such as"):
        parse_payload(json.dumps(value))


@pytest.mark.parametrize("payload", [{1: 2}, {None: 2}, {"a": {1: 2}}, {"a": [{"b": {True: 1}}]}, {"a": ({1.5: 2},)}])
def test_keys_that_are_no_texts_are_refused_at_every_level(payload: Any) -> None:
    with pytest.raises(InvalidJobError, match=r"the payload has the key .*; the keys of a JSON object are texts"):
        check_payload(payload)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), {1, 2}, b"bytes", object(), {("a",): 1}])
def test_what_json_has_not_is_refused(value: object) -> None:
    with pytest.raises(InvalidJobError, match="the payload cannot be stored as JSON"):
        check_payload({"a": [value]})


def test_a_value_that_contains_itself_is_refused() -> None:
    value: dict[str, Any] = {}
    value["self"] = value
    with pytest.raises(InvalidJobError, match="the payload cannot be stored as JSON: Circular"):
        check_payload(value)


@pytest.mark.parametrize("payload", [{"a": "x\x00"}, {"\x00": 1}, {"a": [{"b": ("\x00",)}]}, {"a": {"b\x00": 1}}])
def test_nul_is_refused_in_keys_and_values(payload: Any) -> None:
    with pytest.raises(
        InvalidJobError, match="the payload holds a NUL character, which Postgres cannot store; remove it"
    ):
        check_payload(payload)


@pytest.mark.parametrize("payload", [{"a": "\ud800"}, {"\udfff": 1}, {"a": ["\ud800x"]}])
def test_a_lone_surrogate_is_refused_in_keys_and_values(payload: Any) -> None:
    with pytest.raises(
        InvalidJobError, match="the payload holds a lone surrogate, which Postgres cannot store; remove it"
    ):
        check_payload(payload)
    with pytest.raises(InvalidJobError, match="the payload holds a lone surrogate"):
        parse_payload(json.dumps(payload))


def test_text_that_only_looks_like_an_escape_passes() -> None:
    assert json.loads(check_payload({"a": "\\u0000 \\ud800"})) == {"a": "\\u0000 \\ud800"}


@pytest.mark.parametrize("letter", ["x", "é", "𝄞"])
def test_one_megabyte_of_json_passes_and_one_byte_more_is_refused(letter: str) -> None:
    frame = len(b'{"a": ""}')
    count, rest = divmod(MAX_JSON_BYTES - frame, len(letter.encode()))
    text = letter * count + "y" * rest
    assert len(check_payload({"a": text}).encode()) == MAX_JSON_BYTES
    with pytest.raises(
        InvalidJobError, match=r"the payload is 1048577 bytes as JSON; at most 1048576 \(1 MB\) are kept"
    ):
        check_payload({"a": text + "y"})


def test_200_levels_pass_and_one_more_is_refused() -> None:
    assert json.loads(check_payload(nested(MAX_DEPTH))) == nested(MAX_DEPTH)
    for depth in (MAX_DEPTH + 1, 500, 100_000):
        with pytest.raises(InvalidJobError, match="the payload is nested too deeply; at most 200 levels are kept"):
            check_payload(nested(depth))
    for text in ("[" * 100_000, '{"a":' * 100_000, '{"a":' * 300 + "1" + "}" * 300):
        with pytest.raises(InvalidJobError, match="the payload is nested too deeply"):
            parse_payload(text)


def test_many_parts_on_few_levels_are_not_deep() -> None:
    payload = {"rows": [{"n": n} for n in range(1000)]}
    assert json.loads(check_payload(payload)) == payload


@pytest.mark.parametrize(
    "text", ["", "{", "nonsense", "{'a': 1}", '{"a": 1}}', "{a: 1}", "\x00", '{"a": "\x00"}', "\ud800"]
)
def test_text_that_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidJobError, match="the payload is no JSON: "):
        parse_payload(text)


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_no_json_are_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidJobError, match=f"the payload holds {name}, which is no JSON; write a number or null"):
        parse_payload(f'{{"a": {name}}}')


@pytest.mark.parametrize("number", ["1e999", "9" * 5000])
def test_numbers_that_python_cannot_keep_are_refused(number: str) -> None:
    with pytest.raises(InvalidJobError, match="the payload"):
        parse_payload(f'{{"a": {number}}}')


def test_a_result_is_named_as_such() -> None:
    with pytest.raises(InvalidJobError, match="the result holds a NUL"):
        to_json("\x00", "result")


@pytest.mark.parametrize("check", [check_user_id, check_key])
def test_user_id_and_key_are_1_to_200_storable_characters(check: Any) -> None:
    for good in ("a", "x" * 200, "𝄞" * 200, " ", "'; DROP SCHEMA archibald CASCADE; --"):
        assert check(good) == good
    for bad in ("", "x" * 201, None, 7, b"alice", ["a"]):
        with pytest.raises(InvalidJobError, match="must be a text of 1 to 200 characters"):
            check(bad)
    with pytest.raises(InvalidJobError, match="holds a NUL character, which Postgres cannot store; remove it"):
        check("a\x00")
    with pytest.raises(InvalidJobError, match="holds a lone surrogate, which Postgres cannot store; remove it"):
        check("\udcff")


def test_a_kind_is_1_to_100_of_its_letters() -> None:
    for good in ("a", "7", "submit-order", "erp:order.submit_2", "x" * 100):
        assert check_kind(good) == good
    for bad in ("", "x" * 101, "Submit", "-a", "a b", "a\n", "é", "'; DROP", None, 1):
        with pytest.raises(InvalidJobError, match="kind must be 1 to 100 of a-z"):
            check_kind(bad)


def test_a_delay_is_0_seconds_to_10_years() -> None:
    assert [check_delay(value) for value in (0, 0.0, 1, 2.5, MAX_DELAY)] == [0, 0, 1, 2.5, MAX_DELAY]
    for bad in (-1, -0.001, float("nan"), float("inf"), float("-inf"), MAX_DELAY + 1, 10**400, "5", None, True):
        with pytest.raises(
            InvalidJobError, match=r"delay must be a number of seconds from 0 to 315360000 \(10 years\)"
        ):
            check_delay(bad)


def test_what_is_no_id_is_the_id_of_no_job() -> None:
    assert [check_job_id(1), check_job_id(MAX_ID)] == [1, MAX_ID]
    for bad in (0, -1, MAX_ID + 1, 10**30, "1", 1.0, True, None):
        with pytest.raises(UnknownJobError, match="there is no job "):
            check_job_id(bad)


def test_a_limit_is_1_to_10000_and_a_state_one_of_six() -> None:
    assert [check_limit(1), check_limit(10_000)] == [1, 10_000]
    for bad in (0, -1, 10_001, 1.0, True, "5", None):
        with pytest.raises(InvalidJobError, match="limit must be a whole number from 1 to 10000"):
            check_limit(bad)
    assert [check_state(str(state)) for state in State] == list(State)
    for unknown in ("", "QUEUED", "done", None, 1):
        with pytest.raises(
            InvalidJobError, match="state must be one of queued, running, needs_review, completed, failed"
        ):
            check_state(unknown)
