"""The README's table of clients: every line in it is one that a test runs."""

from __future__ import annotations

from client import ages
from support.documents import README
from support.snippets import client_lines

RUN_BY_TESTS = {
    ages.IN_A_PAGE,
    ages.WITH_A_KEY,
    ages.ELSEWHERE,
    ages.IN_NODE,
    ages.IN_NODE_BEFORE,
    ages.AI_SDK,
    ages.CURL,
}


def test_every_javascript_and_curl_line_is_run_by_a_test() -> None:
    ours = {client for client, line in client_lines().items() if line.startswith(("fal.config(", "const fal", "curl "))}
    assert ours == RUN_BY_TESTS


def test_no_row_of_the_table_escapes_the_tests_by_its_form() -> None:
    table = README.read_text("utf-8").partition("<!-- clients:")[2].partition("<!-- /clients -->")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(client_lines()) >= len(RUN_BY_TESTS)
