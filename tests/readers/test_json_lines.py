"""JSON lines: what is read, and the messages of what is refused."""

import pytest

from bigmodel.errors import UserError
from bigmodel.readers import json_lines


def read(tmp_path, content):
  path = tmp_path / "a.jsonl"
  path.write_bytes(content)
  return list(json_lines.rows(path))


@pytest.mark.parametrize(
  ("content", "rows"),
  [
    (b"", []),
    (b'{"a": 1}', [(1, {"a": 1})]),
    (b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"b": 2}\n', [(1, {"a": 1}), (4, {"b": 2})]),
    ('{"a": "x\u2028y\x85\x0c"}\n'.replace("\x0c", "").encode(), [(1, {"a": "x\u2028y\x85"})]),
  ],
)
def test_rows(content, rows, tmp_path):
  assert read(tmp_path, content) == rows


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b'{"a": 1}\n{"a": \xe9}\n', r"line 2: not UTF-8: .*xe9"),
    (b'{"a": 1}\n{"a": \n', r"line 2: not JSON: "),
    (b"[\n", r"line 1: not JSON: .*one object per line"),
    (b"[1, 2]\n", r"line 1: not a JSON object but \[1, 2\]"),
    (b"[" * 100_000, r"line 1: .*JSON"),
    (b"1" * 5000, r"line 1: "),
    (b'\xff\xfe{\x00"\x00', r"line 1: not UTF-8"),
  ],
)
def test_refused(content, message, tmp_path):
  with pytest.raises(UserError, match=message) as error:
    read(tmp_path, content)
  assert "\n" not in str(error.value)
  assert len(str(error.value)) < 400


def test_fields():
  row = {"a": {"b": {"c": "x"}}, "a.b": "whole", "t": None}
  assert json_lines.value(row, "a.b", "here") == "whole"
  assert json_lines.value(row, "a.b.c", "here") == "x"
  assert json_lines.value(row, "t", "here") is None
  with pytest.raises(UserError, match=r"here: no field 'a.x'; it has b"):
    json_lines.value(row, "a.x", "here")
  assert json_lines.value(row, "t.deeper", "here") is None
  with pytest.raises(UserError, match=r"here: no field 'l.0.c': before '0' is a list, and lists have no fields"):
    json_lines.value({"l": [{"c": "x"}]}, "l.0.c", "here")
  with pytest.raises(UserError, match=r"here: no field 'tt'.*it has a, a.b, t"):
    json_lines.value(row, "tt", "here")
  with pytest.raises(UserError, match=r"here: the field 'a' is not a text but"):
    json_lines.text(row["a"], "a", "here")


def test_halves_of_surrogate_pairs_are_replaced():
  assert json_lines.without_surrogates("a\ud83d b\ude00 \ud83d\ude00é") == "a\ufffd b\ufffd 😀é"
  assert json_lines.without_surrogates("plain é 😀") == "plain é 😀"
