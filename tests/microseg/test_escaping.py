import logging
import os
from pathlib import Path

import pytest

from microseg.errors import MicrosegError, NoSpaceError
from microseg.escaping import csv_cell, markdown, mask_log_records, mask_secrets, printable


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://u:p@h/db", "postgresql://***@h/db"),
        ("postgresql://u:p/w@d@h/db", "postgresql://***@h/db"),
        ("https://token@h/x, ftp://a:b@c", "https://***@h/x, ftp://***@c"),
        ("https://h?password=abc&x=1", "https://h?password=***&x=1"),
        ("AccountName=a;AccountKey=abc==;x", "AccountName=a;AccountKey=***;x"),
        ("Authorization: Basic abcdefghijk", "Authorization: Basic ***"),
        ("http://host:5000/a@b s3://bucket/x@y", "http://host:5000/a@b s3://bucket/x@y"),
        ("sqlite:////a/mlflow.db", "sqlite:////a/mlflow.db"),
    ],
)
def test_secrets_of_addresses_are_masked(address, shown):
    assert mask_secrets(address) == shown


def test_secrets_of_the_environment_are_masked_in_errors(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse")
    assert str(MicrosegError("401 for correct horse at https://a:b@h")) == "401 for *** at https://***@h"
    assert isinstance(NoSpaceError("full"), OSError)


def test_control_characters_of_names_are_escaped():
    assert printable("a\nb\x1b[2J\udce9\u202e 日本 é") == "a\\nb\\x1b[2J\\xe9\\u202e 日本 é"
    assert str(MicrosegError("\x1b]0;title\x07: expected a\nb")) == "\\x1b]0;title\\x07: expected a\nb"


@pytest.mark.parametrize("name", ["=cmd|'/c calc'!A1", "+1", "-1.png", "@SUM(A1)", "\t=1"])
def test_no_cell_of_a_table_is_a_formula(name):
    assert csv_cell(name)[0] in "'\\"
    assert csv_cell("a=b.png") == "a=b.png"


def test_text_in_markdown_is_one_line_and_has_no_structure():
    stain = "H&E\n\n## Gate\nAccepted. **x** [a](b) ![](c) <img> | `d` lab_a"
    expected = r"H&E ## Gate Accepted. \*\*x\*\* \[a\](b) !\[\](c) \<img\> \| \`d\` lab_a"
    assert markdown(stain) == expected
    assert [markdown(text) for text in ("# a", "- a", "12. a", "_a_")] == ["\\# a", "\\- a", "12\\. a", "\\_a\\_"]


def test_names_in_log_lines_are_escaped(caplog: pytest.LogCaptureFixture) -> None:
    mask_log_records()
    logging.getLogger("x").warning("%s %s", Path(os.fsdecode(b"a\xe9")), "b\x1b")
    assert caplog.messages == [r"a\xe9 b\x1b"]
