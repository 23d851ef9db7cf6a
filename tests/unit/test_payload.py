import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.answers.payload import PayloadError, decode, encode_canonical

SAMPLE = (Path(__file__).parents[1] / "samples" / "result.json").read_bytes()

# Some texts that are easily taken for each other once a lone surrogate is spelled out.
texts = st.sampled_from(["", "a", "\\", "\\\\", "\\ud800", "\ud800", "\\u005c", "é", "\x00"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def body(value: Any) -> bytes:
    return json.dumps({"result": {"field": value}}).encode()


def number(text: str) -> Any:
    """Return what the number `text` is decoded to."""
    return decode(b'{"result":{"field":%s}}' % text.encode()).result["field"]


def number_hash(text: str) -> str:
    return decode(b'{"result":{"field":%s}}' % text.encode()).content_hash


def turned_round(value: Any) -> Any:
    """Return `value` with the keys of each object in the opposite order."""
    if isinstance(value, dict):
        return {name: turned_round(member) for name, member in reversed(value.items())}
    return [turned_round(item) for item in value] if isinstance(value, list) else value


def test_the_sample_is_decoded_as_it_stands() -> None:
    payload = decode(SAMPLE)
    assert payload.document == json.loads(SAMPLE)
    assert payload.result["id"] == "ac247a18-75d5-4094-8ab3-56788d6d2ff9"


def test_white_space_means_nothing() -> None:
    compact = json.dumps(json.loads(SAMPLE), separators=(",", ":")).encode()
    assert compact != SAMPLE
    assert decode(compact).content_hash == decode(SAMPLE).content_hash


def test_the_order_of_keys_means_nothing() -> None:
    other = json.dumps(turned_round(json.loads(SAMPLE))).encode()
    assert decode(other).content_hash == decode(SAMPLE).content_hash


def test_the_order_of_a_list_means_something() -> None:
    assert decode(body([1, 2])).content_hash != decode(body([2, 1])).content_hash


@pytest.mark.parametrize(
    "spellings",
    [
        ["1", "1.0", "1e0", "10e-1", "0.1E+1"],
        ["0", "-0", "0.0", "-0.0", "0e5", "0e999", "0e-999"],
        ["100", "1e2", "1.00e2"],
        ["0.1", "0.10", "1e-1"],
        ["1e30", "1" + "0" * 30],
        ["1e400", "10e399", "0.1e401", "1" + "0" * 400],
        ["-1e4299", "-1" + "0" * 4299],
        ["1e4300", "1" + "0" * 4300],
        ["1e5999", "1" + "0" * 5999, "1" + "0" * 5999 + ".0"],
        ["12e-401", "1.2e-400", "1.20e-400"],
    ],
    ids=lambda spellings: spellings[0],
)
def test_a_number_is_the_same_however_it_is_spelled(spellings: list[str]) -> None:
    assert len({number_hash(spelling) for spelling in spellings}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "2"),
        ("1", "true"),
        ("1", '"1"'),
        ("0", "false"),
        ("null", '""'),
        ("1e999", "1e998"),
        ("1e-400", "1e-500"),
        ("1e-400", "0"),
        ("9" * 6000, "9" * 5999 + "8"),
        ("1.00000000000000000001", "1"),
        ("0.1", "0.10000000000000000001"),
        ("1e99999999999999999999", "1e99999999999999999998"),
    ],
)
def test_different_values_have_different_hashes(one: str, other: str) -> None:
    assert number_hash(one) != number_hash(other)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
        ("18446744073709551616", 2**64),
        ("228669.0", 228669),
        ("0.1", 0.1),
        ("1e999", Decimal("1e999")),
        ("9" * 6000, Decimal("9" * 6000)),
        ("-" + "9" * 6000, Decimal("-" + "9" * 6000)),
        ("1.00000000000000000001", Decimal("1.00000000000000000001")),
    ],
)
def test_a_number_is_exact(text: str, value: float | Decimal) -> None:
    assert number(text) == value


def test_a_whole_number_is_an_int_however_it_is_spelled() -> None:
    assert [type(number(text)) for text in ("5", "5.0", "50e-1")] == [int, int, int]


@given(values, values)
@settings(max_examples=300)
def test_two_answers_have_the_same_hash_if_and_only_if_they_are_equal(one: Any, other: Any) -> None:
    are_equal = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    hashes = decode(body(one)).content_hash, decode(body(other)).content_hash
    assert (hashes[0] == hashes[1]) == are_equal


@given(values)
@settings(max_examples=100)
def test_the_hash_is_that_of_the_content_not_of_the_bytes(value: Any) -> None:
    other = json.dumps({"result": {"field": turned_round(value)}}, indent=3).encode("utf-16")
    assert decode(other).content_hash == decode(body(value)).content_hash


@pytest.mark.parametrize("text", ["\ud800", "a\udc00b", "\udc00\ud800"])
def test_a_lone_surrogate_is_kept_and_is_not_its_own_escape(text: str) -> None:
    alone = decode(body(text))
    spelled = decode(body(text.encode("ascii", "backslashreplace").decode()))
    assert alone.result["field"] == text
    assert alone.content_hash != spelled.content_hash


def test_a_surrogate_pair_is_the_character() -> None:
    escaped = decode(b'{"result":{"field":"\\ud83d\\ude00"}}')
    assert escaped == decode('{"result":{"field":"\N{GRINNING FACE}"}}'.encode())


def test_a_nul_in_a_text_is_kept() -> None:
    assert decode(b'{"result":{"name":"a\\u0000b"}}').result["name"] == "a\0b"


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"]
)
def test_the_encoding_means_nothing(encoding: str) -> None:
    assert decode(SAMPLE.decode().encode(encoding)) == decode(SAMPLE)


def test_of_duplicate_keys_the_last_counts() -> None:
    assert decode(b'{"result":{"name":"a","name":"b"}}') == decode(b'{"result":{"name":"b"}}')


@pytest.mark.parametrize("frame", [{}, {"tests": []}, {"environments": []}, {"anything": 1}])
def test_an_answer_needs_no_more_than_a_result_object(frame: dict[str, Any]) -> None:
    assert decode(json.dumps({"result": frame, "beside": 1}).encode()).result == frame


MARKUP = "is HTML or XML, not JSON, such as the page of a proxy or a login; check base_url"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (b"", "the answer is empty"),
        (b" \r\n\t", "the answer is empty"),
        (b"\xef\xbb\xbf", "the answer is not JSON"),
        (b"\n<html></html>", MARKUP),
        (b"\xef\xbb\xbf <!DOCTYPE html>", MARKUP),
        ("\ufeff<html></html>".encode("utf-16-le"), MARKUP),
        ("\ufeff<html></html>".encode("utf-16-be"), MARKUP),
        (b"<html>\xe4</html>", MARKUP),
        (b"<?xml version='1.0'?><Error/>", MARKUP),
        (b"<5", "the answer is not JSON"),
        (b"{'result': {}}", "the answer is not JSON"),
        (SAMPLE[:-3], "the answer is not JSON"),
        (SAMPLE + b"{}", "the answer is not JSON"),
        (b'{"result":{"name":"\x00"}}', "the answer is not JSON"),
        (b'{"result":{"duration":NaN}}', "NaN is no JSON number"),
        (b'{"result":{"duration":-Infinity}}', "-Infinity is no JSON number"),
        (b'{"result":{"duration":012}}', "the answer is not JSON"),
        (b'{"result":{"name":"\xff"}}', "the answer is not UTF-8 text"),
        (b'{"result":{"name":"\xed\xa0\x80"}}', "the answer is not UTF-8 text"),
        (b'{"result":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'\xef\xbb\xbf{"a":' + b'{"a":' * 100_000, "nested too deeply"),
        (b"[]", "the answer is no JSON object"),
        (b"null", "the answer is no JSON object"),
        (b"{}", "the answer has no `result` object"),
        (b'{"result":null}', "the answer has no `result` object"),
        (b'{"result":[]}', "the answer has no `result` object"),
        (b'{"result":{"tests":null}}', "`result.tests` is no list"),
        (b'{"result":{"tests":{}}}', "`result.tests` is no list"),
        (b'{"result":{"environments":"x"}}', "`result.environments` is no list"),
    ],
    ids=lambda part: repr(part[:30]),
)
def test_a_broken_frame_is_a_payload_error(broken: bytes, reason: str) -> None:
    with pytest.raises(PayloadError) as caught:
        decode(broken)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


damaged = st.builds(
    lambda start, length, patch: SAMPLE[:start] + patch + SAMPLE[start + length :],
    st.integers(0, len(SAMPLE)),
    st.integers(0, 40),
    st.binary(max_size=4) | st.sampled_from([b"1e9999999999999999999", b'"\\ud800"', b"-", b"[[["]),
)


@given(st.binary(max_size=40) | damaged)
@settings(max_examples=400)
def test_whatever_comes_it_is_decoded_or_a_payload_error(anything: bytes) -> None:
    try:
        payload = decode(anything)
    except PayloadError:
        return
    assert isinstance(payload.result.get("tests", []), list)
    assert isinstance(payload.result.get("environments", []), list)
    assert len(payload.content_hash) == 64


@pytest.mark.parametrize(
    "text",
    ["1e99999999999999999999", "-1e99999999999999999999", "1e-99999999999999999999"],
)
def test_an_exponent_beyond_all_measure_is_no_broken_frame(text: str) -> None:
    assert decode(b'{"result":{"name":"a","field":%s}}' % text.encode()).result["name"] == "a"


def test_the_canonical_text_is_compact_and_sorted() -> None:
    document = decode(b'{"result":{"b":[1.0,1e9999,0.5,null],"a":"\xc3\xa9"}}').document
    assert encode_canonical(document) == '{"result":{"a":"é","b":[1,1E+9999,0.5,null]}}'
