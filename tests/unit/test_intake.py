"""The run list: every format it comes in, and what happens to a line that is wrong."""

import csv
import io
import itertools
import json
import re
import sys
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from etl.intake.entries import BadLine, ListedRun, check_run_id
from etl.intake.formats import RunList, read_entries, read_list

ANSWER = """{
  "result": {
    "id": "run-1",
    "read_token": "token-1"
  }
}"""


def runs(text: str) -> list[ListedRun]:
    """Read a list that must have no bad line."""
    answer = read_list(text.encode())
    assert answer.bad_lines == []
    return answer.runs


def run_ids(text: str) -> list[str]:
    return [run.run_id for run in runs(text)]


def run_ids_and_bad_lines(text: str) -> tuple[list[str], list[tuple[int, str]]]:
    answer = read_list(text.encode())
    return [run.run_id for run in answer.runs], [(bad.line, bad.reason) for bad in answer.bad_lines]


# Plain IDs


def test_plain_ids_stand_one_a_line() -> None:
    assert runs("run-1\nrun-2\n") == [ListedRun("run-1"), ListedRun("run-2")]


def test_an_id_may_be_digits_or_have_blanks_inside() -> None:
    assert run_ids("4711\nnightly run 3\n") == ["4711", "nightly run 3"]


def test_comments_and_blank_lines_are_left_out() -> None:
    text = "# last night\n\n  # and today\nrun-1 # the flaky one\nrun-2\t#\n \t\nrun#3\n"
    assert run_ids(text) == ["run-1", "run-2", "run#3"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b"# nothing yet\n", b" \t\r\n"])
def test_an_empty_list_has_neither_runs_nor_bad_lines(content: bytes) -> None:
    assert read_list(content) == RunList([], [])


@pytest.mark.parametrize(
    "line",
    [
        "run-2,token-2",
        "run-2;token-2",
        "run-2|token-2",
        '{"id": "run-2"',
        "[run-2]",
        "],",
        "<p>run-2</p>",
        "server: nginx",
        "run_id: run-2",
        "run_id=run-2 read_token=token-2",
        "-----",
        "+---+---+",
        "sep=:",
    ],
)
def test_a_plain_line_with_more_than_an_id_is_bad(line: str) -> None:
    answer = read_list(f"run-1\n{line}\nrun-3\n".encode())
    assert answer == RunList(
        [ListedRun("run-1"), ListedRun("run-3")],
        [BadLine(2, "more than a run ID; a list with columns needs a header with run_id")],
    )


# CSV


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_has_our_columns_and_labels(delimiter: str) -> None:
    text = "branch,run_id,read_token,source,build\nmain,run-1,token-1,emea,17\n,run-2,,,\n"
    assert runs(text.replace(",", delimiter)) == [
        ListedRun("run-1", "emea", "token-1", {"branch": "main", "build": "17"}),
        ListedRun("run-2"),
    ]


@pytest.mark.parametrize(
    "header", ['"run_id","team"', " Run_ID , team", '# mine\n\n"run_id", team']
)
def test_a_csv_header_may_be_quoted_padded_capitalised_or_below_comments(header: str) -> None:
    assert runs(f"{header}\nrun-1, web \n") == [ListedRun("run-1", labels={"team": "web"})]


def test_a_csv_of_one_column_is_a_csv() -> None:
    assert run_ids("run_id\nrun-1\nrun-2\n") == ["run-1", "run-2"]


def test_quoted_cells_keep_commas_quotes_and_newlines() -> None:
    text = 'run_id,title\n"run,1","say ""hi"", then\ngo"\n'
    assert runs(text) == [ListedRun("run,1", labels={"title": 'say "hi", then\ngo'})]


def test_csv_rows_may_be_short_blank_repeated_headers_or_comments() -> None:
    text = "run_id,source,team\nrun-1\n\n,,\nrun_id,source,team\n#run-8,x,y,z\nrun-2,emea\n"
    assert runs(text) == [ListedRun("run-1"), ListedRun("run-2", "emea")]


def test_a_column_without_a_name_is_no_label() -> None:
    assert runs(",run_id,team\n0,run-1,web\n") == [ListedRun("run-1", labels={"team": "web"})]


@pytest.mark.parametrize("name", ["Run ID", "run-id", "RunID", "RUN ID", "\u200brun_id\u200b"])
def test_a_heading_of_run_ids_is_a_header(name: str) -> None:
    assert runs(f"{name}\nrun-1\n") == [ListedRun("run-1")]
    assert runs(f"branch;{name}\nmain;run-1\n") == [ListedRun("run-1", labels={"branch": "main"})]


@pytest.mark.parametrize("content", ["run_id\n", "run_id,read_token", "sep=;\nrun_id\n", "sep=;"])
def test_a_header_alone_is_an_empty_list(content: str) -> None:
    assert read_list(content.encode()) == RunList([], [])


@pytest.mark.parametrize(
    "text",
    [
        "run_id|read_token\nrun-1|token-1\nrun-2|\n(2 rows)\n",
        " run_id | read_token \n--------+------------\n run-1  | token-1\n run-2  |\n(2 rows)\n",
        "| run_id | read_token |\n|---|:---|\n| run-1 | token-1 |\n| run-2 | |\n",
        "+--+--+\n| run_id | read_token |\n+--+--+\n| run-1 | token-1 |\n| run-2 |\n+--+--+\n",
        "sep=;\r\nrun_id;read_token\r\nrun-1;token-1\r\nrun-2;\r\n",
        '"sep=^"\nrun_id^read_token\nrun-1^token-1\nsep=^\nrun-2\n',
        "# mine\nSEP=\t\nrun_id\tread_token\nrun-1\ttoken-1\t\t\nrun-2\n",
        "run_id,read_token\nrun-1,token-1,\nrun-2,,, \n",
    ],
    ids=["psql -A", "psql", "markdown", "mysql", "Excel", "a caret", "a tab", "empty cells"],
)
def test_programs_write_tables_in_their_ways(text: str) -> None:
    assert runs(text) == [ListedRun("run-1", read_token="token-1"), ListedRun("run-2")]


HEADER_REFUSED = (
    "a header without a run_id column, or not separated by , ; tab or |; the whole list is left out"
)


@pytest.mark.parametrize(
    "header",
    [
        "run_id:read_token",
        "run_id read_token",
        "run_id^source",
        "id,read_token",
        "Read Token|branch",
        "run_id / read-token",
    ],
)
def test_a_header_that_cannot_be_read_leaves_out_the_whole_list(header: str) -> None:
    text = f"# mine\n{header}\nrun-1\ntoken-1\n"
    assert run_ids_and_bad_lines(text) == ([], [(2, HEADER_REFUSED)])


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("run_id", "run-1;token-1"),
        ("run_id,read_token", "run-1;token-1"),
        ("run_id|read_token", "run-1,token-1"),
        ("run_id,read_token", "run-1\ttoken-1"),
        ("run_id;read_token", "run-1|token-1"),
    ],
)
def test_a_row_with_another_separator_than_its_header_is_bad(header: str, row: str) -> None:
    ids, bad = run_ids_and_bad_lines(f"{header}\n{row}\nrun-2\n")
    assert (ids, [line for line, _ in bad]) == (["run-2"], [2])


def test_bad_csv_rows_are_reported_with_the_line_where_they_begin() -> None:
    text = 'run_id,team\n"run-1","a\nb"\nrun-2,web,9\n,web\nrun-3,web\n'
    assert run_ids_and_bad_lines(text) == (
        ["run-1", "run-3"],
        [(4, "more cells than the header has columns"), (5, "no run_id")],
    )


def test_a_quote_that_is_never_closed_costs_one_row() -> None:
    text = 'run_id,team\nrun-1,"web\nrun-2,web\nrun-3,"a, b"\n'
    assert run_ids_and_bad_lines(text) == (
        ["run-2", "run-3"],
        [(2, "not valid CSV: a quote is not closed, or a cell is too long")],
    )


# JSON and JSON Lines


def test_the_answer_to_an_execute_call_is_a_list_as_it_is() -> None:
    assert runs(ANSWER) == [ListedRun("run-1", read_token="token-1")]


@pytest.mark.parametrize(
    "text",
    [
        f"{ANSWER}\n{ANSWER.replace('-1', '-2')}\n",
        f"{ANSWER}{ANSWER.replace('-1', '-2')}",
        f"[{ANSWER},\n{ANSWER.replace('-1', '-2')}]",
        f'{{"runs": [{ANSWER}, {ANSWER.replace("-1", "-2")}]}}',
        "\n".join(f'{{"result":{{"id":"run-{n}","read_token":"token-{n}"}}}}' for n in (1, 2)),
    ],
    ids=["one after another", "without a newline", "array", "runs", "lines"],
)
def test_many_execute_answers_may_come_in_any_arrangement(text: str) -> None:
    assert runs(text) == [
        ListedRun("run-1", read_token="token-1"),
        ListedRun("run-2", read_token="token-2"),
    ]


def test_what_stands_beside_an_execute_answer_describes_the_run() -> None:
    text = '{"result": {"id": "run-1", "status": "pending"}, "source": "emea", "branch": "main"}'
    assert runs(text) == [ListedRun("run-1", "emea", labels={"branch": "main"})]


@pytest.mark.parametrize(
    "text",
    [
        '["run-1", {"run_id": "run-2"}]',
        '[\n  "run-1",\n  {\n    "run_id": "run-2"\n  }\n]\n',
        '"run-1"\n{"run_id": "run-2"}\n',
        '{"total": 2, "runs": ["run-1", {"run_id": "run-2"}]}',
        '# from CI\n"run-1"\n# later\n\n"run-2"',
    ],
    ids=["array", "pretty array", "lines", "runs", "lines with comments"],
)
def test_json_may_mix_strings_and_objects(text: str) -> None:
    assert runs(text) == [ListedRun("run-1"), ListedRun("run-2")]


def test_json_scalars_are_labels_as_they_were_written() -> None:
    text = """{"run_id": "run-1", "read_token": null, "source": "", "build": 17, "version": 1.10,
      "nightly": true, "skipped": null, "parts": [1], "labels": {"team": "web", "wip": false}}"""
    assert runs(text) == [
        ListedRun(
            "run-1",
            labels={
                "build": "17",
                "version": "1.10",
                "nightly": "true",
                "team": "web",
                "wip": "false",
            },
        )
    ]


def test_a_number_of_any_length_is_a_label() -> None:
    digits = "9" * 5000
    assert runs(f'{{"run_id": "run-1", "n": {digits}}}')[0].labels == {"n": digits}


def test_text_that_no_database_stores_is_replaced_in_labels() -> None:
    text = r'{"run_id": "run-1", "a\u0000b": "c\ud800d", "smile": "\ud83d\ude00"}'
    assert runs(text)[0].labels == {"a\ufffdb": "c\ufffdd", "smile": "\U0001f600"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{'run_id': 'run-2'}", "not valid JSON (line 2, column 2)"),
        ("run-2", "not valid JSON (line 2, column 1)"),
        ('"run-2" oops', "not valid JSON (line 2, column 8)"),
        ('"run_id": "run-2"', "not valid JSON (line 2, column 9)"),
        ('{"run_id": "run-2', "not valid JSON (line 2, column 12)"),
        ('{"run_id": "run-2"', "not valid JSON (line 3, column 1)"),
        ('{"run_id": "run-2",', "not valid JSON (line 3, column 1)"),
        ('{"run_id": "run-2"}}', "not valid JSON (line 2, column 20)"),
        ('{"a": ' + "[" * 100_000, "JSON nested too deep"),
        ("4711", "the run ID is not a string; put it in quotes"),
        ("null", "the run ID is not a string; put it in quotes"),
        ('{"run_id": 4711}', "the run ID is not a string; put it in quotes"),
        ('{"run_id": null}', "the run ID is not a string; put it in quotes"),
        ('{"result": {"id": null}}', "the run ID is not a string; put it in quotes"),
        ('{"result": null}', "no run_id"),
        ("{}", "no run_id"),
        ('{"run_id": " "}', "the run ID is empty"),
        ('{"run_id": "run-2", "read_token": 5}', "read_token is not a string; put it in quotes"),
        ('{"run_id": "run-2", "source": ["emea"]}', "source is not a string; put it in quotes"),
        (
            r'{"run_id": "run-2", "read_token": "a\nb"}',
            "read_token has a control character or a URL with a key in it",
        ),
    ],
)
def test_a_bad_json_line_is_reported_and_the_others_go_on(line: str, reason: str) -> None:
    text = f'"run-1"\n{line}\n{{"run_id": "run-3"}}\n"run-4"'
    assert run_ids_and_bad_lines(text) == (["run-1", "run-3", "run-4"], [(2, reason)])


MISSING_COMMA = "not valid JSON: a comma is missing before this value"
MISSING_VALUE = "not valid JSON: a value is missing before the comma"
EXTRA_BRACKET = "not valid JSON: a closing bracket too many"
CUT_OFF = "not valid JSON: the list that begins here is not closed; was it cut off?"


@pytest.mark.parametrize(
    ("text", "bad_lines"),
    [
        ('[{"run_id": "run-1"}, "run-2"', [(1, CUT_OFF)]),
        ('# mine\n[\n"run-1",\n"run-2",\n', [(2, CUT_OFF)]),
        ('[["run-1"], ["run-2"]', [(1, CUT_OFF)]),
        ('[["run-1"]\n["run-2"]]', [(2, MISSING_COMMA)]),
        ('["run-1"\n"run-2"]', [(2, MISSING_COMMA)]),
        ('[{"run_id": "run-1"} {"run_id": "run-2"}]', [(1, MISSING_COMMA)]),
        ('["run-1",\n\n, "run-2"]', [(3, MISSING_VALUE)]),
        ('[, "run-1", "run-2"]', [(1, MISSING_VALUE)]),
        ('["run-1", "run-2"]]]', [(1, EXTRA_BRACKET)]),
        ('["run-1"]\n]\n"run-2"\n]', [(2, EXTRA_BRACKET), (4, EXTRA_BRACKET)]),
        ('["run-1" "run-2"', [(1, MISSING_COMMA), (1, CUT_OFF)]),
    ],
)
def test_brackets_and_commas_that_do_not_match_are_reported(
    text: str, bad_lines: list[tuple[int, str]]
) -> None:
    assert run_ids_and_bad_lines(text) == (["run-1", "run-2"], bad_lines)


def test_a_hundred_thousand_brackets_are_one_bad_line() -> None:
    assert run_ids_and_bad_lines("[" * 100_000) == ([], [(1, CUT_OFF)])
    assert run_ids_and_bad_lines("[" + "]" * 100_000) == ([], [(1, EXTRA_BRACKET)])


@pytest.mark.parametrize("text", ['["run-1", "run-2",]', '"run-1",\n"run-2",', '"run-1""run-2"'])
def test_a_comma_more_than_json_allows_does_no_harm(text: str) -> None:
    assert run_ids(text) == ["run-1", "run-2"]


def test_a_broken_answer_among_others_leaves_no_run_behind() -> None:
    broken = ANSWER.replace('"run-1",', '"run-1"').replace("-1", "-2")
    text = f"{ANSWER}\n{broken}\n{ANSWER.replace('-1', '-3')}\n"
    assert run_ids_and_bad_lines(text) == (
        ["run-1", "run-3"],
        [(7, "not valid JSON (line 10, column 5)")],
    )


def test_a_broken_entry_costs_the_other_entries_of_a_list_nothing() -> None:
    text = '{"runs": [\n  {"run_id": "run-1"},\n  {"run_id": oops},\n  "run-3"\n], "total": 3\n}\n'
    assert run_ids_and_bad_lines(text) == (
        ["run-1", "run-3"],
        [
            (1, "not valid JSON (line 3, column 14)"),
            (3, "not valid JSON (line 3, column 14)"),
        ],
    )


def test_bad_entries_of_an_array_have_their_own_lines() -> None:
    text = '[\n  "run-1",\n  null,\n  {\n    "source": "emea"\n  },\n  "run-2"\n]'
    assert run_ids_and_bad_lines(text) == (
        ["run-1", "run-2"],
        [(3, "the run ID is not a string; put it in quotes"), (4, "no run_id")],
    )


# What all formats share


def test_a_later_entry_for_the_same_run_wins_where_it_says_something() -> None:
    text = "run_id,source,read_token,team,build\nrun-1,,,web,1\nrun-2\nrun-1,emea,token-1,,2\n"
    text += "run-1,apac,token-9,,\n"
    assert runs(text) == [
        ListedRun("run-1", "apac", "token-9", {"team": "web", "build": "2"}),
        ListedRun("run-2"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_the_usual_encodings_are_read(encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    assert read_list(f"{mark}run-ä\nrun-😀\n".encode(encoding)) == RunList(
        [ListedRun("run-ä"), ListedRun("run-😀")], []
    )


def test_byte_order_marks_of_lists_that_were_put_together_vanish() -> None:
    assert run_ids("\ufeffrun-1\r\n\ufeffrun-2\r\n") == ["run-1", "run-2"]


@pytest.mark.parametrize(
    ("before", "bad", "after"),
    [
        (b"run-1\n", b"r\xfcn-2", b"\nrun-3"),
        (b"run_id,team\nrun-1,web\n", b"run-2,B\xfcro", b"\nrun-3,web"),
        (b"team,run_id\nweb,run-1\n", b"B\xfcro,run-2", b"\nweb,run-3"),
        (b'"run-1"\n', b'{"run_id": "run-2", "team": "B\xfcro"}', b'\n"run-3"'),
        (b'["run-1",\n', b'"r\xfcn-2",', b'\n"run-3"]'),
        (b"\xff\xfer\0u\0n\0-\x001\0\n\0", b"\0\xd8", b"\n\0r\0u\0n\0-\x003\0"),
    ],
    ids=["plain", "csv", "csv, ID last", "lines", "array", "utf-16"],
)
def test_bytes_that_are_no_text_make_one_bad_line(before: bytes, bad: bytes, after: bytes) -> None:
    line = 3 if b"run_id,team" in before or b"team,run_id" in before else 2
    answer = read_list(before + bad + after)
    assert [run.run_id for run in answer.runs] == ["run-1", "run-3"]
    assert answer.bad_lines == [BadLine(line, "not readable as text; save the list as UTF-8")]


def test_a_utf_16_list_that_is_cut_off_has_a_bad_last_line() -> None:
    answer = read_list("run-1\nrun-2".encode("utf-16")[:-1])
    assert answer == RunList(
        [ListedRun("run-1")], [BadLine(2, "not readable as text; save the list as UTF-8")]
    )


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "appended",
    [
        b"run-3\nrun-4\n",
        b"run-33\n",
        b"run-3\r\nrun-4\r\n",
        b"4f1c7a52-run",
        b"run-3\n" + "run-4\n".encode("utf-16-le"),
        b"run-33\n" + "run-4\n".encode("utf-16-le"),
    ],
)
def test_ascii_appended_to_a_utf_16_list_is_one_bad_line(encoding: str, appended: bytes) -> None:
    answer = read_list("\ufeffrun-1\r\nrun-2\r\n".encode(encoding) + appended)
    assert [run.run_id for run in answer.runs] == ["run-1", "run-2"]
    assert {bad.reason for bad in answer.bad_lines} == {
        "not readable as text; save the list as UTF-8"
    }


def test_utf_16_appended_to_an_ascii_list_is_bad() -> None:
    answer = read_list(b"run-1\n" + "run-2\r\nrun-3\r\n".encode("utf-16-le"))
    assert [run.run_id for run in answer.runs] == ["run-1"]
    assert len(answer.bad_lines) >= 2


@pytest.mark.parametrize("run_id", ["日本", "run-中", "夜間テスト", "ਪੰਜਾਬੀ", "\u0a33-ਰਨ"])
def test_foreign_letters_are_no_misread_ascii(run_id: str) -> None:
    assert read_list(f"run-1\n{run_id}\n".encode("utf-16")).runs[1:] == [ListedRun(run_id)]


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x1f\x8b", b"%PDF-1.7", b"\xd0\xcf\x11\xe0"])
def test_a_binary_file_is_one_bad_line(start: bytes) -> None:
    answer = read_list(start + b"\0\nrun-1\n")
    assert answer == RunList([], [BadLine(1, "not a text file; save the list as CSV, in UTF-8")])


@pytest.mark.parametrize("page", ["<!DOCTYPE html>", "\n  <html>", "<?xml version='1.0'?>"])
def test_a_page_is_one_bad_line(page: str) -> None:
    ids, [(_, reason)] = run_ids_and_bad_lines(f"{page}\nPlease log in\n</html>\n")
    assert (ids, reason) == ([], "this is HTML or XML, not a run list")


HEAD = "HTTP/2 200 \r\nserver: nginx\r\nx-request-id: 1\r\n\r\n"


@pytest.mark.parametrize(
    "text",
    [
        HEAD + ANSWER,
        f"HTTP/1.1 200 Connection established\r\n\r\n{HEAD}{ANSWER}\n",
        f"HTTP/1.1 100 Continue\n\nHTTP/1.1 201 Created\nDate: x\n\n{ANSWER}",
        f"{HEAD}run_id,read_token\nrun-1,token-1",
    ],
)
def test_the_head_of_an_http_answer_is_passed_over(text: str) -> None:
    assert runs(text) == [ListedRun("run-1", read_token="token-1")]


def test_heads_between_answers_keep_the_numbers_of_lines() -> None:
    answers = f"{HEAD}{ANSWER}\n{HEAD}{{}}\n{HEAD}{ANSWER.replace('-1', '-2')}\n"
    assert run_ids_and_bad_lines(answers) == (["run-1", "run-2"], [(15, "no run_id")])


@pytest.mark.parametrize(
    "text",
    [
        "\u200brun-1\u200b",
        "run-1\ufeff\n",
        "\u202arun-1\u202c",
        "run\u00ad-1\u00a0",
        "run_id\n\u2060run-1\u200e ",
        '["run\u200d-1"]',
        '\u200b{"run_id": "\\u200brun-1"}',
        "\ufeff\u200brun_id,source\nrun-1\u200b,",
    ],
)
def test_invisible_characters_are_removed_and_the_run_says_so(text: str) -> None:
    [run] = runs(text)
    assert run.run_id == "run-1"


def test_invisible_characters_leave_tokens_and_stay_in_labels() -> None:
    family = "\U0001f468\u200d\U0001f469"
    [run] = runs(f"run_id,read_token,team\nrun-1,to\u200bken-1,{family}\n")
    assert (run, run.is_cleaned) == (ListedRun("run-1", None, "token-1", {"team": family}), True)
    assert [run.is_cleaned for run in runs("run-1\nrün-2 \n")] == [False, False]


def test_every_run_knows_its_place() -> None:
    texts = ["# x\nrun-1\n", "\nrun_id\nrun-1\n", '[\n\n"run-1"]', '{"runs":\n["run-1"]}']
    places = [
        entry.place
        for text in texts
        for entry in read_entries(text.encode(), "a.txt")
        if isinstance(entry, ListedRun)
    ]
    assert places == ["a.txt:2", "a.txt:3", "a.txt:3", "a.txt:1"]


@pytest.mark.parametrize(
    "url",
    [
        "https://eyes.example/api/result/run-2?apiKey=SECRET",
        "HTTPS://eyes.example/api/result/run-2?read_token=t&apikey=SECRET",
        "eyes.example/api/result/run-2?apiKey=SECRET",
        "run-2?apiKey=SECRET",
    ],
)
@pytest.mark.parametrize("form", ["{}", "run_id\n{}", '"run-1"\n"{}"', '{{"run_id": "{}"}}'])
def test_a_url_is_refused_without_being_quoted(url: str, form: str) -> None:
    reasons = [bad.reason for bad in read_list(form.format(url).encode()).bad_lines]
    assert reasons == ["this is a URL with a key in it; give the run ID alone"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "run_id,link\nrun-1,https://eyes.example/api/result/run-1?apiKey=SECRET",
            "a label has a URL with a key in it, and would store the key",
        ),
        (
            "run_id,readToken\nrun-1,SECRET",
            "a label is named like a secret; a read token belongs in read_token",
        ),
        (
            '\n{"run_id": "run-1", "labels": {"API key": "SECRET"}}',
            "a label is named like a secret; a read token belongs in read_token",
        ),
        (
            "run_id,source\nrun-1,https://eyes.example/?apiKey=SECRET",
            "source has a control character or a URL with a key in it",
        ),
    ],
)
def test_a_secret_never_becomes_a_label_or_a_source(text: str, reason: str) -> None:
    assert run_ids_and_bad_lines(text) == ([], [(2, reason)])


def test_an_ordinary_url_may_be_a_label() -> None:
    text = "run_id,build_url\nrun-1,https://ci.example/jobs/7?tab=log\n"
    assert runs(text)[0].labels == {"build_url": "https://ci.example/jobs/7?tab=log"}


def test_a_repr_hides_the_read_token() -> None:
    assert "SECRET" not in repr(read_list(b'{"run_id": "run-1", "read_token": "SECRET"}'))


# The rule for run IDs


@pytest.mark.parametrize("text", ["x", "x" * 512, "...", "a b", "ä/ö?%", "\U0001f600", "#1"])
def test_a_good_run_id_is_returned(text: str) -> None:
    assert check_run_id(text) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the run ID is empty"),
        ("x" * 513, "the run ID is longer than 512 characters"),
        (".", "a run ID cannot be . or .."),
        ("..", "a run ID cannot be . or .."),
        (" x", "the run ID has blanks at its ends"),
        ("x\u3000", "the run ID has blanks at its ends"),
        ("a\u200bb", "the run ID has an invisible character in it"),
        ("\ufeffab", "the run ID has an invisible character in it"),
        ("a\0b", "the run ID has a control character or half a character in it"),
        ("a\x9fb", "the run ID has a control character or half a character in it"),
        ("a\ud800b", "the run ID has a control character or half a character in it"),
        ("https://x/y?apiKey=k", "this is a URL with a key in it; give the run ID alone"),
    ],
)
def test_a_bad_run_id_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        check_run_id(text)


# Properties


def is_run_id(text: str) -> bool:
    try:
        check_run_id(text)
    except ValueError:
        return False
    return True


# What other tests state as literal facts stays out: comments, headers, and CSV without a header.
RUN_IDS = st.text(min_size=1, max_size=20).filter(is_run_id)
PLAIN_RUN_IDS = RUN_IDS.filter(
    lambda text: not set(text) & set('#,;<>"[{]}|:=') and any(map(str.isalnum, text))
).filter(lambda text: text.casefold() != "run_id")
CSV_RUN_IDS = RUN_IDS.filter(
    lambda text: text[0] != "#" and text != "run_id" and set(text) - set("-+=:| ")
)


def as_plain(ids: list[str]) -> str:
    return "\n".join(ids)


def as_csv(ids: list[str]) -> str:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerows([["run_id", "team"], *([run_id, ""] for run_id in ids)])
    return file.getvalue()


def as_array(ids: list[str]) -> str:
    return json.dumps(ids)


def as_pretty_objects(ids: list[str]) -> str:
    return json.dumps([{"run_id": run_id} for run_id in ids], indent=2, ensure_ascii=False)


def as_answers(ids: list[str]) -> str:
    return "\n".join(json.dumps({"result": {"id": run_id}}, indent=2) for run_id in ids)


def as_lines(ids: list[str]) -> str:
    return "\n".join(json.dumps({"run_id": run_id}, ensure_ascii=False) for run_id in ids)


FORMATS = {
    as_plain: PLAIN_RUN_IDS,
    as_csv: CSV_RUN_IDS,
    as_array: RUN_IDS,
    as_pretty_objects: RUN_IDS,
    as_answers: RUN_IDS,
    as_lines: RUN_IDS,
}
Written = tuple[Callable[[list[str]], str], list[str]]
WRITTEN: st.SearchStrategy[Written] = st.sampled_from(list(FORMATS)).flatmap(
    lambda write: st.tuples(st.just(write), st.lists(FORMATS[write], max_size=8))
)


@given(WRITTEN)
@settings(deadline=None)
def test_every_list_of_run_ids_is_read_as_it_was_written(written: Written) -> None:
    write, ids = written
    assert read_list(write(ids).encode()) == RunList([ListedRun(i) for i in dict.fromkeys(ids)], [])


def is_ascii_twice(character: str) -> bool:
    """Tell a character that UTF-16 writes as two bytes of ASCII."""
    return "\xff" < character <= "\u7f7f" and ord(character) % 256 < 128


@given(WRITTEN, st.sampled_from(["\n", "\r\n", "\r"]), st.sampled_from(["utf-8-sig", "utf-16"]))
@settings(deadline=None)
def test_newlines_marks_and_duplicates_do_no_harm(
    written: Written, newline: str, encoding: str
) -> None:
    write, ids = written
    assume(encoding != "utf-16" or not any(map(is_ascii_twice, "".join(ids))))
    text = write(ids + ids).replace("\r\n", "\n").replace("\n", newline)
    assert read_list(text.encode(encoding)) == read_list(write(ids).encode())


# Bytes that look like lists reach further into the readers than any bytes do.
WORDS = rb'run_id read_token "result" "runs" "id" run-1 "x" 1e9 NaN true null \ud800'.split()
BYTES = [bytes([byte]) for byte in b" \t\r\n,;:\"'[]{}#\\\0\xff\xfe"]
FRAGMENTS = st.lists(
    st.sampled_from([*WORDS, *BYTES, b"\xef\xbb\xbf", b"\xed\xa0\x80"]), max_size=60
).map(b"".join)


@given(st.binary() | FRAGMENTS)
@example(b"\xff\xfe\x00")
@example(b"\xfe\xff\xd8")
@example(b'{"a":' * 100_000)
@settings(max_examples=500, deadline=None)
def test_any_bytes_give_runs_that_keep_the_rule_and_lines_that_exist(content: bytes) -> None:
    answer = read_list(content)
    line_count = content.count(b"\n") + content.count(b"\r") + 1
    assert all(check_run_id(run.run_id) for run in answer.runs)
    assert all(1 <= bad.line <= line_count for bad in answer.bad_lines)
    assert len({run.run_id for run in answer.runs}) == len(answer.runs)


def as_cut_off_lines(ids: list[str]) -> str:
    return "\n".join(f'{{"run_id": "{run_id}"' for run_id in ids)


@pytest.mark.parametrize("write", [*FORMATS, as_cut_off_lines])
def test_work_grows_with_the_list_and_not_with_its_square(
    write: Callable[[list[str]], str],
) -> None:
    """A call makes a line, decodes a value or checks a run: their number is the work."""

    def count_calls(count: int) -> int:
        content = write([f"run-{number}" for number in range(count)]).encode()
        calls = itertools.count()
        sys.setprofile(lambda _frame, event, _argument: event.endswith("call") and next(calls))
        try:
            read_list(content)
        finally:
            sys.setprofile(None)
        return next(calls)

    assert count_calls(4_000) < 11 * count_calls(400)  # its square would be 100


@pytest.mark.parametrize("write", FORMATS)
def test_memory_for_the_entries_does_not_grow_with_the_list(
    write: Callable[[list[str]], str],
) -> None:
    """The text of the list and the places of its lines are kept; entries come and go."""

    def measure_bytes_per_run(count: int) -> float:
        content = write([f"run-{number:06}" for number in range(count)]).encode()
        tracemalloc.start()
        try:
            for _ in read_entries(content, "list"):
                pass
            return (tracemalloc.get_traced_memory()[1] - 4 * len(content)) / count
        finally:
            tracemalloc.stop()

    assert measure_bytes_per_run(4_000) < 150
