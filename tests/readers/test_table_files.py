"""Tables of text and of JSON lines: what is read, what is noted, and the messages of what is refused."""

import gzip
import random

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigmodel.errors import UserError
from bigmodel.readers import delimited_frames, tables


def read(tmp_path, content, name="t.csv", **options):
  path = tmp_path / name
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return tables.read(path, **options)


NUMBERS = {"a": [1, 3], "b": [2, 4]}


@pytest.mark.parametrize(
  ("content", "columns", "lines", "notes"),
  [
    ("a,b\n1,2\n3,4\n", NUMBERS, [2, 3], []),
    ("a,b\r1,2\r3,4", NUMBERS, [2, 3], []),
    ("\ufeffa,b\r\n1,2\r\n3,4\r\n\r\n\r\n", NUMBERS, [2, 3], []),
    ("a,b\n\n1,2\n,\n3,4\n,\n", NUMBERS, [3, 5], ["2 blank rows left out"]),
    (" a , b\n 1 ,2\n3, 4 \n", NUMBERS, [2, 3], []),
    ("a;b\n1;2\n3;4\n", NUMBERS, [2, 3], ["cells are separated by semicolons"]),
    ("a\tb\n1\t2\n3\t4\n", NUMBERS, [2, 3], ["cells are separated by tabs"]),
    ("a  b\n1 2\n3    4\n", NUMBERS, [2, 3], ["cells are separated by blanks"]),
    ("| a | b |\n|---|--:|\n| 1 | 2 |\n| 3 | 4 |\n", NUMBERS, [3, 4], ["cells are separated by vertical bars"]),
    ("sep=;\na;b\n1;2\n3;4\n", NUMBERS, [3, 4], ["cells are separated by semicolons"]),
    ("# x\n# y, z\na,b\n1,2\n# w\n3,4\n", NUMBERS, [4, 6], ["the header is line 3", "3 comment lines left out"]),
    ("# a,b\n1,2\n3,4\n", NUMBERS, [2, 3], ["comment"]),
    ("Export\nof: today\n\na,b\n1,2\n3,4\n", NUMBERS, [5, 6], ["the header is line 4; 2 lines above it left out"]),
    ("a,b,\n1,2,\n3,4,\n", NUMBERS, [2, 3], []),
    ("a,b\n1,2,\n3,4,\n", NUMBERS, [2, 3], []),
    (",a,b\n0,1,2\n1,3,4\n", NUMBERS, [2, 3], ["column 1, which has no name and numbers the rows, is left out"]),
    ("Unnamed: 0,a,b\n9,1,2\n4,3,4\n", NUMBERS, [2, 3], ["column 1, which has no name"]),
    ('"a","b"\n"1",1,2\n"2",3,4\n', NUMBERS, [2, 3], ["column 1, which has no name"]),
    ("a,b,a\n1,2,1\n3,4,3\n", NUMBERS, [2, 3], ["column 3 repeats 'a' and is left out"]),
    (",b\n1950,2\n1951,4\n", {"column 1": [1950, 1951], "b": [2, 4]}, [2, 3], ["column 1 has no name and is called"]),
    (",a,b\n2,1,2\n1,3,4\n", NUMBERS, [2, 3], ["column 1, which has no name"]),
    ('"a" "b"\n"1" 1 2\n"2" 3 4\n', NUMBERS, [2, 3], ["blanks", "column 1, which has no name"]),
    ('"a" "b"\n"x" 1 2\n"y" 3 4\n', {"column 1": ["x", "y"], **NUMBERS}, [2, 3], ["blanks", "column 1 has no name"]),
    ("r,a\nx,1\n#7,2\ny,3\nz,4\n", {"r": ["x", "#7", "y", "z"], "a": [1, 2, 3, 4]}, [2, 3, 4, 5], []),
    ("r,s\nx,1 b\n//h,2 c\ny,d\n", {"r": ["x", "//h", "y"], "s": ["1 b", "2 c", "d"]}, [2, 3, 4], []),
    ("a,b\n1,2\n#7,8\n3,4\n", NUMBERS, [2, 4], ["1 comment line left out"]),
    ("r,a\nx,1\n# here, more\ny,2\n", {"r": ["x", "y"], "a": [1, 2]}, [2, 4], ["1 comment line left out"]),
    ("Runs of 2024,\n,\na,b\n1,2\n3,4\n", NUMBERS, [4, 5], ["the header is line 3; 2 lines above it left out"]),
    ("a,,\nx,1,2\ny,3,4\n", {"a": ["x", "y"], "column 2": [1, 3], "column 3": [2, 4]}, [2, 3], ["no name"] * 2),
    ('a,b\n"x\ny",2\n"z",4\n', {"a": ["x\ny", "z"], "b": [2, 4]}, [2, 4], []),
    ("n,v\nx,1\ny,2\nTotal,3\n", {"n": ["x", "y"], "v": [1, 2]}, [2, 3], ["row 4 holds totals"]),
    ("a,b\n1,2\n3,4\n".encode("utf-16"), NUMBERS, [2, 3], ["the file is UTF-16"]),
    ("a,b\n1,2\n3,4\n".encode("utf-16-be"), NUMBERS, [2, 3], ["UTF-16-BE"]),
    ("a,b\né,2\nx,4\n".encode("latin-1"), {"a": ["é", "x"], "b": [2, 4]}, [2, 3], ["line 2 has the byte 0xe9"]),
    ("a;b;c\n1;2,5;1.234\n3;4;5.000\n", {"a": [1, 3], "b": ["2,5", "4"], "c": ["1.234", "5.000"]}, [2, 3], ["semi"]),
    ("a;b\n1;7,715\n3;6,080\n", {"a": [1, 3], "b": ["7,715", "6,080"]}, [2, 3], ["semicolons"]),
    ("d,e\n01/02/2020,1\n03/04/2020,2\n", {"d": ["01/02/2020", "03/04/2020"], "e": [1, 2]}, [2, 3], []),
  ],
)
def test_rows(content, columns, lines, notes, tmp_path):
  table = read(tmp_path, content)
  assert table.frame.to_dict(as_series=False) == columns
  assert list(table.all_lines()) == lines
  assert len(table.notes) == len(notes)
  assert all(part in note for part, note in zip(notes, table.notes, strict=True))


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("", "t.csv is empty"),
    ("\n\n", "t.csv has no content"),
    ("a,b\n", r"t.csv has no rows below its header \(a, b\)"),
    ("1,2\n3,4\n", "line 1: has numbers .1, 2, .* where the names of the columns are expected"),
    ("a,b\n1,2\n3\n", r"line 3: 1 cells where the header has 2 names \('3'\)"),
    ("a,b\n1,2\n3,4,5\n6,7\n", "line 3: 3 cells where the header has 2 names"),
    ("a,b,c\n4000000,20000000,7,71\n4000001,20000000,7,71\n", "line 2: rows have 4 cells, but the header has 3 names"),
    ('a,b\n1,"x\n2,y\n', "line 2: a quotation mark begins here that is never closed"),
    ("a,b\n1,\0\n", "line 2: has a NUL byte"),
    ("a,a\n1,2\n", "line 1: two columns have the name 'a'"),
    (b"a,b\n1,\x81\n", "cannot be read: line 2 has the byte 0x81, which is not UTF-8"),
    (b"PK\x03\x04...", "is an Excel workbook"),
    ("<!DOCTYPE html>\n<html>", "is an HTML page"),
    ("version https://git-lfs.github.com/spec/v1\noid x\n", "is a Git LFS pointer"),
    (gzip.compress(b"a,b\n1,2\n", mtime=0), "a gzip file whose name does not end in .gz"),
    ('[{"a": 1}, {"a": 2}]', "is a JSON array .* orient='records', lines=True"),
    (b"\xff\xfea\x00,\x00b", "is no valid UTF-16"),
  ],
)
def test_refused(content, message, tmp_path):
  with pytest.raises(UserError, match=message) as error:
    read(tmp_path, content)
  assert "\n" not in str(error.value)
  assert "t.csv" in str(error.value)


def test_rows_of_another_length_can_be_left_out(tmp_path):
  table = read(tmp_path, "a,b\n1,2\n3\n4,5,6\n3,4\n", skip_bad_rows=True)
  assert table.frame.to_dict(as_series=False) == NUMBERS
  assert table.notes == ("2 rows with too few or too many cells left out (lines 3, 4)",)


def test_json_files_hold_json_lines_or_are_refused(tmp_path):
  assert read(tmp_path, '{"a": 1}\n{"a": 3}\n', "t.json").frame["a"].to_list() == [1, 3]
  for content in ('[{"a": 1}]', '[\n  {\n "a": 1}]', '{"a": {"0": 1}}', "{\n}"):
    with pytest.raises(UserError, match=r"t\.json is a JSON .*lines=True"):
      read(tmp_path, content, "t.json")
  with pytest.raises(UserError, match="is no JSON, although"):
    read(tmp_path, "a,b\n1,2\n", "t.json")


def test_kinds_of_files(tmp_path):
  frame = pl.DataFrame({"a": [1, 3], "b": [2.5, 4.0], "c": ["x", "y"]})
  frame.write_parquet(tmp_path / "t.PARQUET")
  frame.write_ipc(tmp_path / "t.feather")
  (tmp_path / "t.NDJSON").write_text('{"a": 1, "b": 2.5, "c": "x"}\n\n{"c": "y", "b": 4, "a": 3}\n')
  (tmp_path / "t.CSV.gz").write_bytes(gzip.compress(b"a,b,c\n1,2.5,x\n3,4,y\n"))
  for name in ("t.PARQUET", "t.feather", "t.NDJSON", "t.CSV.gz"):
    assert tables.read(tmp_path / name).frame.select("a", "b", "c").equals(frame), name
  packed = tables.read(tmp_path / "t.CSV.gz")
  assert packed.sha256 == read(tmp_path, b"a,b,c\n1,2.5,x\n3,4,y\n").sha256
  for name, content in (("t.parquet", b"PAR1xx"), ("t.arrow", b"no"), ("t.jsonl", b"{}\n"), ("t.csv.gz", b"no")):
    with pytest.raises(UserError, match=name):
      read(tmp_path, content, name)
  nested = read(tmp_path, b'{"a": {"b": 1, "c": [1]}}\n{"a": {"b": null}, "d": true}\n{"a": {"b": "x"}}\n', "t.jsonl")
  assert nested.frame.to_dict(as_series=False) == {
    "a.b": ["1", None, "x"],
    "a.c": ["[1]", None, None],
    "d": [None, True, None],
  }


def test_large_files_are_read_like_small_ones(tmp_path, monkeypatch):
  """Without the limit on small files, polars alone reads plain files; the others are still read record by record."""
  rng = random.Random(0)
  rows = [f"{i},{rng.random():.4f},{rng.choice('xy')},2024-01-{i % 28 + 1:02d},{i % 3 or ''}" for i in range(300)]
  text = "\n".join(["i,f,s,d,e", *rows])
  ragged = text + "\n7,0.5,x,2024-01-01\n"
  contents = [
    text,
    text + "\n\n# end\n",
    text.replace(",", ";"),
    text.replace("x", '"x\n"'),
    text.replace("\n9", "\n9.5"),
  ]
  small = [read(tmp_path, content) for content in contents]
  monkeypatch.setattr(delimited_frames, "SMALL", 0)
  for content, expected in zip(contents, small, strict=True):
    found = read(tmp_path, content)
    assert found.frame.equals(expected.frame)
    assert found.line(0) == expected.line(0)
  monkeypatch.setattr(delimited_frames, "BEGIN", 200)  # the layout is found without the row that is too short
  with pytest.raises(UserError, match="line 302: 4 cells where the header has 5 names"):
    read(tmp_path, ragged)


PLAIN = b'name;v;day\n"x;1";1,5;2024-01-02\ny;2;2024-01-03\nz;;2024-02-01\n'
VALID = (PLAIN, PLAIN.replace(b";", b","), PLAIN.decode().encode("utf-16"), b"# c\na b\n1 2\n3 4\n")


@st.composite
def mutated(draw):
  content = bytearray(draw(st.sampled_from(VALID)))
  for _ in range(draw(st.integers(1, 4))):
    at = draw(st.integers(0, len(content)))
    change = draw(st.sampled_from(("flip", "cut", "insert", "double")))
    if change == "flip" and at < len(content):
      content[at] ^= 1 << draw(st.integers(0, 7))
    elif change == "cut":
      del content[at : at + draw(st.integers(1, 20))]
    elif change == "insert":
      content[at:at] = draw(st.binary(min_size=1, max_size=4) | st.sampled_from((b'"', b"\n", b";", b",", b"#", b"\0")))
    else:
      content[at:at] = content[at : at + 10]
  return bytes(content)


def outcome(path):
  try:
    return tables.read(path)
  except UserError as error:
    return str(error)


@pytest.mark.fuzz
@given(content=st.binary(max_size=200) | mutated(), kind=st.sampled_from((".csv", ".tsv.gz", ".jsonl", ".parquet")))
def test_any_bytes_are_a_table_or_refused_in_one_line(tmp_path_factory, content, kind):
  folder = tmp_path_factory.getbasetemp()
  (folder / f"any{kind}").write_bytes(gzip.compress(content) if kind.endswith(".gz") else content)
  table = outcome(folder / f"any{kind}")
  if isinstance(table, str):
    assert "\n" not in table
  else:
    assert len(table.frame) == len(np.asarray(table.all_lines())) > 0
