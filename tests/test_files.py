"""Reading what others wrote: JSON and YAML are read or refused in words, whatever is in them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import ConfigError, DataError, RunError
from runtime.files import (
    parse_json,
    read_jsonl,
    read_lines,
    refuse_links,
    shown,
    whole_text,
    write_atomically,
)
from runtime.yaml_reader import parse_yaml

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)
MARKS = ("\n", "  ", "\t", ": ", "- ", ", ", "? ", "[", "]", "{", "}", "'", '"', "|", ">", "#")
WORDS = ("a", "&a ", "*a", "!", "!!int ", "<<: ", "0x", "1e", "9" * 50, "2026-02-30", "~", "%", "@")


def test_a_file_that_two_write_at_once_is_whole(tmp_path: Path) -> None:
    """Neither takes the other's unfinished file away, and no reader finds half a file."""
    path = tmp_path / "kept"
    contents = [bytes([number]) * 200_000 for number in range(4)]
    write_atomically(path, contents[0])

    def write(content: bytes) -> None:
        for _ in range(50):
            write_atomically(path, content)
            assert path.read_bytes() in contents

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, contents))
    assert [found.name for found in tmp_path.iterdir()] == ["kept"]


@pytest.mark.slow
@given(VALUES)
def test_whatever_was_written_as_json_is_read_as_it_was(value: object) -> None:
    assert parse_json(json.dumps(value), "here", DataError) == value


@pytest.mark.slow
@given(
    st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode(errors="replace"))
)
def test_any_bytes_are_json_or_refused(data: bytes) -> None:
    try:
        parse_json(data, "here", DataError)
    except DataError as error:
        assert str(error).startswith("here: ")


@pytest.mark.slow
@settings(max_examples=500)
@given(st.lists(st.sampled_from(MARKS + WORDS), max_size=30).map("".join) | st.text(max_size=100))
def test_any_text_is_yaml_or_refused(text: str) -> None:
    try:
        parse_yaml(text, "here")
    except ConfigError as error:
        assert str(error).startswith("here: ")


@pytest.mark.slow
def test_one_line_in_a_hundred_thousand_is_named_by_number(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n\n' * 50_000 + "[]\n")
    read = []
    with pytest.raises(RunError, match=r"x\.jsonl:100001: expected an object, found list"):
        read.extend(read_jsonl(path, RunError))
    assert len(read) == 50_000 and read[-1] == (f"{path}:99999", {"a": 1})


def test_lines_have_offsets_that_lead_back_to_them(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes("\n  \nä\r\nb".encode())
    lines = list(read_lines(path, RunError))
    assert [(line.number, line.offset, line.data) for line in lines] == [
        (3, 4, "ä\r\n".encode()),  # after one byte, and three
        (4, 8, b"b"),  # ä takes two bytes
    ]
    with pytest.raises(RunError, match=r"none: no such file"):
        list(read_lines(tmp_path / "none", RunError))
    with pytest.raises(RunError, match="Is a directory"):
        list(read_lines(tmp_path, RunError))


def test_a_hundred_levels_are_read_and_one_more_is_not() -> None:
    assert parse_json("[" * 100 + "1" + "]" * 100, "here", DataError)
    with pytest.raises(DataError, match="nested more than 100 levels deep"):
        parse_json("[" * 101 + "]" * 101, "here", DataError)


def test_a_link_anywhere_in_a_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "run" / "tb").mkdir(parents=True)
    refuse_links(tmp_path / "run", RunError)
    (tmp_path / "run" / "tb" / "link").symlink_to(tmp_path)
    with pytest.raises(RunError, match="tb/link: a symbolic link"):
        refuse_links(tmp_path / "run", RunError)
    (tmp_path / "other").symlink_to(tmp_path / "run")
    with pytest.raises(RunError, match="other: a symbolic link"):
        refuse_links(tmp_path / "other", RunError)


def test_what_a_message_shows_is_short() -> None:
    assert shown("x" * 1000) == "'" + "x" * 79 + "..."
    assert shown(10**5000) == "(int)"
    assert shown([1]) == "[1]"


@given(st.text(st.characters()))
def test_whole_text_leaves_whole_texts_alone(text: str) -> None:
    whole = whole_text(text)
    whole.encode()
    assert whole == text or any("\ud800" <= char <= "\udfff" for char in text)
