import json
import os
from xml.etree import ElementTree

import pytest

from microseg.errors import ParseError
from microseg.parsing import parse_json, parse_xml, parse_yaml, read_text


def test_dates_in_yaml_are_texts():
    assert parse_yaml("stain: 2024-01-01\nscanned: 2024-13-45\nmpp: 0.5") == {
        "stain": "2024-01-01",
        "scanned": "2024-13-45",
        "mpp": 0.5,
    }


@pytest.mark.parametrize(
    "text",
    [
        "a: &x [1]\nb: [*x, *x]",
        "a: &a [*a]",
        "a: 1\na: 2",
        "a: !!float x",
        "a: !!timestamp 2024-13-45",
        "a: !!binary é",
        "a: !!python/object/apply:os.system [ls]",
        "a: !!int ''",
        "? {a: 1}\n: b",
        "[" * 5000,
        "- " * 5000 + "a",
        "a: " + "9" * 5000,
        "a: \x00",
        "x" * (2**20 + 1),
        "!!set {a: b",
        "!!omap [1]",
        "<<: 1",
    ],
)
def test_other_yaml_is_refused(text):
    with pytest.raises(ParseError):
        parse_yaml(text)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 5000, "NaN", '{"a": Infinity}', "", b"\xff", "[1,", "{'a': 1}"]
)
def test_other_json_is_refused(text):
    with pytest.raises(ParseError):
        parse_json(text)


def test_names_that_are_not_utf8_are_read_again():
    name = "caf\udce9"
    assert parse_json(json.dumps([name]), any_names=True) == [name]
    for text in ("[" * 100_000, "NaN", "[1,", b"\xff"):
        with pytest.raises(ParseError):
            parse_json(text, any_names=True)


def test_xml_is_read_as_elementtree_reads_it():
    data = b'<?xml version="1.0"?><a xmlns="urn:x" b="1"><c>text<d/>tail</c></a>'
    assert ElementTree.tostring(parse_xml(data)) == ElementTree.tostring(ElementTree.fromstring(data))


@pytest.mark.parametrize(
    "data",
    [
        b'<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>',
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
        b"<a>" * 200 + b"</a>" * 200,
        b'<?xml version="1.0" encoding="no-such"?><a/>',
        b"<a>",
        b"",
        b"\xff\xfe\x00",
    ],
)
def test_other_xml_is_refused(data):
    with pytest.raises(ParseError):
        parse_xml(data)


def test_only_regular_files_are_read(tmp_path):
    fifo, large = tmp_path / "fifo", tmp_path / "large"
    os.mkfifo(fifo)
    large.write_bytes(b"a" * 100)
    with pytest.raises(ParseError, match="FIFO"):
        read_text(fifo)
    with pytest.raises(ParseError, match="100"):
        read_text(large, limit=99)
    with pytest.raises(ParseError, match="folder"):
        read_text(tmp_path)
    large.write_bytes(b"\xe9")
    with pytest.raises(ParseError, match="UTF-8"):
        read_text(large)
