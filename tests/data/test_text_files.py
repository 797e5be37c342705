"""Files of a corpus: which are read, which are passed over and counted, and the messages of those that are refused."""

import gzip
import json
import lzma
import os

import hypothesis
import numpy as np
import pytest
import zstandard
from hypothesis import strategies as some

from bigmodel import data as room
from bigmodel.cli import main
from bigmodel.data import builders, corpus, corpus_files, documents
from bigmodel.errors import UserError
from bigmodel.readers import plain_text
from bigmodel.study import default_config

PACK = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}
ROWS = "".join(json.dumps({"text": f"row {i} has a few words"}) + "\n" for i in range(60)).encode()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"


def config_of(path, **changes):
  config = default_config()
  config.data.update(name="text_files", path=str(path), context=16, heldout_fraction=0.2, **changes)
  return config


def texts_of(path, text_key="text"):
  (file,) = corpus_files.find(str(path)).files
  return ["".join(text for _, text in document.pieces) for document in documents.documents(file, text_key)]


def write(folder, files):
  for name, content in files.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
  return folder


@pytest.mark.parametrize(
  ("name", "content", "texts"),
  [
    ("A.TXT", b"one\r\ntwo\rthree\n", ["one\ntwo\nthree\n"]),
    ("a b\xe9.Md", "grün 🙂".encode(), ["grün 🙂"]),
    ("a.txt.GZ", gzip.compress(b"packed", mtime=0), ["packed"]),
    ("bom.txt", b"\xef\xbb\xbfwith a mark", ["with a mark"]),
    ("utf16.txt", "grün 🙂".encode("utf-16"), ["grün 🙂"]),
    ("utf16be.txt", b"\xfe\xff" + "grün".encode("utf-16-be"), ["grün"]),
    ("utf32.md.xz", lzma.compress("grün".encode("utf-32")), ["grün"]),
    ("nul.txt", b"a single NUL \0 among much other text", ["a single NUL \0 among much other text"]),
    ("a.JSONL", b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b\\u2028c \xe2\x80\xa8 d"}', ["a", "b\u2028c \u2028 d"]),
    ("a.ndjson", b'{"text": "half \\ud83d of a pair"}\n{"text": "\\ud83d\\ude42"}\n', ["half \ufffd of a pair", "🙂"]),
    ("a.json", b'{"text": "a"}\n{"text": null}\n{"text": " \\n"}\n', ["a"]),
    ("lfs.md", b"Pointers begin with version https://git-lfs...", ["Pointers begin with version https://git-lfs..."]),
    ("bell.txt", b"\x1b[1mcolours\x1b[0m <html>\x08\x0c", ["\x1b[1mcolours\x1b[0m <html>\x08\x0c"]),
  ],
)
def test_files_are_read(name, content, texts, tmp_path):
  assert texts_of(write(tmp_path, {name: content}) / name) == texts


def test_the_text_may_lie_deeper(tmp_path):
  path = write(tmp_path, {"a.jsonl": b'{"data": {"text": "a"}}\n'}) / "a.jsonl"
  assert texts_of(path, "data.text") == ["a"]


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.txt", b"gr\xfcn", r"a.txt: not UTF-8: .*\(b'\\xfc'\); .*iconv -f LATIN1"),
    ("a.txt", "plain words".encode("utf-16-le"), r"a.txt: 11 of its first 22 bytes are NUL: UTF-16"),
    ("a.txt", b"words " * 5000 + bytes(9000), r"a.txt: 4,096 of its last 4,096 bytes are NUL: .*incomplete download"),
    ("a.txt", "grün".encode("utf-16")[:-1], r"a.txt: not UTF-16"),
    ("a.txt", gzip.compress(b"packed", mtime=0), r"a.txt: a gzip file whose name does not end in .gz"),
    ("a.txt.gz", b"plain", r"a.txt.gz: not a gzip file"),
    ("a.txt", POINTER, r"a.txt: it is a Git LFS pointer .*`git lfs pull`"),
    ("a.jsonl.gz", POINTER, r"a.jsonl.gz: it is a Git LFS pointer .*`git lfs pull`"),
    ("a.txt", b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", r"a.txt: a PDF document and not text"),
    (
      "a.txt",
      b"\x7fELF\x02\x01\x01\x03" + bytes(range(1, 9)) * 20,
      r"a.txt: 144 of its first 168 bytes are control",
    ),
    ("a.txt.zst", b"", r"a.txt.zst: not a Zstandard file \(it is empty\)"),
    ("a.jsonl", b'{"text": "a"}\n' * 3000 + b'{"text": "a}\n', r"a.jsonl, line 3001: not JSON"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "gr\xfcn"}\n', r"a.jsonl, line 2: not UTF-8: .*xfc.*iconv"),
    ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), r"a.jsonl, line 1: not UTF-8: .*iconv -f UTF-16"),
    ("a.jsonl", b'{"txt": "a", "id": 1}\n', r"line 1: no field 'text' \(did you mean 'txt'\?\); it has txt, id"),
    (
      "a.jsonl",
      b"{}\n",
      r"line 1: .*it has none; name the field with the text in config.data.text_key$",
    ),
    ("a.jsonl", b'{"id": "a", "data": {"next": 1, "content": {"text": "b c"}}}\n', "text_key=data.content.text$"),
    ("a.jsonl", b'{"Text": "a", "test": 1}\n', r"did you mean 'Text'\?.*data.text_key=Text$"),
    ("a.jsonl", b'{"text": ["a", "b"]}\n', r"line 1: the field 'text' is not a text but \[\"a\", \"b\"\]"),
    ("a.jsonl", b'{"text": 3}\n', r"line 1: the field 'text' is not a text but 3"),
    ("a.jsonl", b'{"text": true}\n', r"line 1: the field 'text' is not a text but true"),
    ("a.jsonl", b'{"text": {"a": 1}}\n', r"line 1: the field 'text' is not a text but \{"),
    ("a.json", b'[{"text": "a"},\n {"text": "b"}]\n', r"line 1: not JSON: .*a JSON array is written as one object per"),
    ("a.json", b'[{"text": "a"}]', r"line 1: not a JSON object but .*a JSON array is written as one object per line"),
    ("a.json", b'{\n "text": "a"\n}\n', r"line 1: not JSON: .*an object has to be written on a single line"),
    ("a.jsonl", b'{"text": "a"}\r{"text": "b"}\r', r"line 1: not JSON: .*lines have to end in \\n"),
  ],
)
def test_files_are_refused_by_name_and_nothing_is_written(name, content, message, tmp_path, monkeypatch):
  monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "cache"))
  config = config_of(write(tmp_path, {name: content, "b.jsonl": ROWS}) / "[ab].*")
  if name.endswith(".json"):
    config.data.path = str(tmp_path / name)
  with pytest.raises(UserError, match=message) as error:
    corpus.prepare(config)
  assert "\n" not in str(error.value)
  assert [path for path in (tmp_path / "cache").rglob("*") if "locks" not in path.parts] == []


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_truncated_files_are_refused_before_anything_is_written(kind, name, tmp_path, monkeypatch):
  monkeypatch.setenv("BIGMODEL_CACHE", str(tmp_path / "cache"))
  write(tmp_path, {f"c/{name}{kind}": PACK[kind](ROWS * 20)[:-9], "c/b.jsonl": ROWS})
  with pytest.raises(UserError, match=f"{name}{kind}: ends inside its .* stream; the file is truncated"):
    corpus.prepare(config_of(tmp_path / "c"))
  assert [path for path in (tmp_path / "cache").rglob("*") if "locks" not in path.parts] == []


def test_files_that_are_passed_over_are_counted(tmp_path, capsys):
  write(tmp_path, {f"c/{i}.PDF": b"%PDF" for i in range(3)})
  write(tmp_path, {"c/a/x.docx": b"PK", "c/notes": b"x", "c/b.tar.gz": b"x", "c/meta.json": b"[]", "c/e.txt": b""})
  write(tmp_path, {"c/.git/a.txt": b"x", "c/._a.txt": b"\0\1", "c/x.txt/rows.jsonl": ROWS})
  os.mkfifo(tmp_path / "c" / "pipe.txt")
  (tmp_path / "c" / "lost.txt").symlink_to("nowhere")
  (tmp_path / "c" / "circle").symlink_to(tmp_path / "c")
  (tmp_path / "config.py").write_text("from bigmodel.study import default_config as get_config\n")
  fields = ("name=text_files", f"path={tmp_path}/c", "context=16", "heldout_fraction=0.2")
  command = ["data", f"--config={tmp_path}/config.py:decoder", *(f"--config.data.{field}" for field in fields)]
  assert main.main(command) == 0
  shown = " ".join(capsys.readouterr().out.split())
  by_suffix = "3 .pdf, 1 .docx, 1 .json, 1 .tar.gz"
  others = "2 hidden, 1 broken link, 1 empty, 1 linked folder, 1 not a regular file, 1 without suffix"
  assert f"passed over: {by_suffix}, {others}" in shown
  assert main.main([*command, "--json", f"--card={tmp_path}/card.html"]) == 0
  card = json.loads(capsys.readouterr().out)
  assert card["passed_over"][".pdf"] == 3
  assert card["splits"]["train"]["documents"] + card["splits"]["validation"]["documents"] == 60
  assert "Files passed over" in (tmp_path / "card.html").read_text()


@pytest.mark.parametrize(
  ("files", "path", "message"),
  [
    ({}, "*.txt", "no .txt, .md or .jsonl file .*; nothing is there"),
    ({"c/a.pdf": b"x", "c/b.pdf": b"x", "c/c.docx": b"x"}, "c", "passed over: 2 .pdf, 1 .docx"),
    ({"c/a.json": ROWS}, "c", "passed over: 1 .json; JSON lines in .json files are read by a pattern that ends in"),
    ({"a.csv": b"x"}, "a.csv", "passed over: 1 .csv; a table is read by data.name=table"),
  ],
)
def test_a_path_without_texts_is_refused_with_what_is_there(files, path, message, tmp_path):
  with pytest.raises(UserError, match=message):
    corpus_files.find(str(write(tmp_path, files) / path))


def test_names_may_have_blanks_brackets_and_bytes_of_other_encodings(tmp_path):
  names = [b"a b.txt", b"[1].txt", b"gr\xfcn.txt"]
  for name in names:
    (tmp_path / os.fsdecode(name)).write_bytes(b"words of " + name.hex().encode())
  found = corpus_files.find(str(tmp_path)).files
  assert sorted(file.name for file in found) == ["[1].txt", "a b.txt", "gr\\xfcn.txt"]
  assert len(corpus_files.find(str(tmp_path / "[1].txt")).files) == 1
  config = config_of(tmp_path)
  config.data.update(heldout_fraction=0.7, context=4)
  corpus.prepare(config)


def test_patterns_do_not_go_in_circles(tmp_path):
  write(tmp_path, {"c/d/a.txt": b"x"})
  for name in ("one", "two"):
    (tmp_path / "c" / "d" / name).symlink_to(tmp_path / "c")
  with pytest.raises(UserError, match=r"goes in circles through the linked folder .*c/d/(one|two)"):
    corpus_files.find(str(tmp_path / "c" / "**" / "*.txt"))
  for name in ("one", "two"):
    (tmp_path / "c" / "d" / name).unlink()
  assert [file.name for file in corpus_files.find(str(tmp_path / "c" / "**" / "*.txt")).files] == ["d/a.txt"]


def test_null_and_blank_texts_are_counted_and_a_cached_corpus_keeps_the_counts(tmp_path):
  path = write(tmp_path, {"a.jsonl": b'{"text": null}\n{"text": null}\n{"text": ""}\n' + ROWS}) / "a.jsonl"
  for tokenizer in ("bytes", "bpe", "bytes"):
    steps = corpus.prepare(config_of(path, tokenizer=tokenizer, vocab_size=300)).card["steps"]
    assert (steps[documents.NULL], steps[documents.BLANK]) == (2, 1)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
  path = write(tmp_path, {"a.jsonl": ROWS}) / "a.jsonl"

  def grow(file, text_key, skipped):
    yield from texts(file, text_key, skipped)
    path.write_bytes(ROWS + ROWS)

  texts = builders.documents_in
  monkeypatch.setattr(builders, "documents_in", grow)
  with pytest.raises(UserError, match=r"a.jsonl: changed while it was read"):
    corpus.prepare(config_of(path))


def test_a_small_single_file_is_divided_or_the_message_names_the_fraction(tmp_path):
  path = write(tmp_path, {"a.txt": b"".join(b"line %d of a little file\n" % i for i in range(40))}) / "a.txt"
  config = config_of(path)
  config.data.update(heldout_fraction=0.02, context=64)
  with pytest.raises(UserError, match=r"validation .*a larger heldout_fraction than 0.02, such as 0.\d+,") as error:
    corpus.prepare(config)
  config.data.heldout_fraction = float(str(error.value).split("such as ")[1].split(",")[0])
  room.check(config)
  corpus.prepare(config)


LINES = some.lists(some.text(some.sampled_from("ab \t\u3000é"), max_size=30), max_size=40).map("\n".join)


@pytest.fixture
def short(monkeypatch):
  monkeypatch.setattr(plain_text, "BLOCK", 11)
  monkeypatch.setattr(plain_text, "PIECE", 16)
  monkeypatch.setattr(plain_text, "LONGEST", 40)


@pytest.mark.fuzz
@hypothesis.given(LINES, some.integers(1, 50))
def test_pieces_are_the_text_and_identities_are_those_of_its_words(short, tmp_path_factory, text, size):
  del short
  blocks = [text[i : i + size] for i in range(0, len(text), size)]
  pieces = list(plain_text.pieces(blocks))
  assert "".join(pieces) == text
  assert all(0 < len(piece) <= plain_text.LONGEST for piece in pieces)
  by_lines, piece = [], ""
  for line in text.splitlines(keepends=True):
    piece += line
    if len(piece) >= plain_text.PIECE:
      by_lines.append(piece)
      piece = ""
  by_lines += [piece] if piece else []
  if all(len(piece) <= plain_text.LONGEST for piece in by_lines):
    assert pieces == by_lines
  words = documents.identity([f"{word} " for word in text.split()])
  assert documents.identity(blocks) == documents.identity([text]) == words
  path = tmp_path_factory.getbasetemp() / "lines.txt"
  path.write_text(text)
  assert "".join(plain_text.lines(path)) == text
  assert "".join(plain_text.blocks(path)) == text


VALID = {
  "a.txt": b"some words\nof a text \xc3\xa9\n",
  "a.jsonl": ROWS[:200] + b'{"text": null}\n{"text": "\\ud800"}\n',
  "a.txt.gz": gzip.compress(ROWS[:300], mtime=0),
  "a.jsonl.zst": zstandard.compress(ROWS),
  "a.md.xz": lzma.compress(ROWS[:99]),
}


@some.composite
def mutated(draw):
  """Draws a name and bytes: of a valid file in which bytes are flipped, cut out, inserted or doubled, or any bytes."""
  name = draw(some.sampled_from(sorted(VALID)))
  content = VALID[name]
  for _ in range(draw(some.integers(0, 3))):
    place, length = draw(some.integers(0, len(content))), draw(some.integers(0, 9))
    part = content[place : place + length]
    flipped, drawn = bytes(255 - byte for byte in part), draw(some.binary(max_size=9))
    other = draw(some.sampled_from([b"", part + part, flipped, drawn]))
    content = content[:place] + other + content[place + length :]
  return name, draw(some.sampled_from([content, draw(some.binary(max_size=60))]))


@pytest.mark.fuzz
@hypothesis.given(mutated())
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path_factory, file):
  name, content = file
  folder = tmp_path_factory.getbasetemp() / "any"
  folder.mkdir(exist_ok=True)
  (folder / name).write_bytes(content)
  message = f"{name}: one line"
  try:
    for text in texts_of(folder / name):
      text.encode()
  except UserError as error:
    message = str(error)
  assert name in message
  assert "\n" not in message
  assert [path.name for path in folder.iterdir()] == [name]
  (folder / name).unlink()


def test_no_document_that_is_cut_within_a_line_is_on_both_sides(tmp_path, short):
  del short
  rng = np.random.default_rng(0)
  words = [[f"doc{i}", *(f"doc{i}w{x}" for x in rng.integers(0, 99, 60))] for i in range(30)]
  files = {f"{i}.txt": " ".join(of_document).encode() for i, of_document in enumerate(words)}
  data = corpus.prepare(config_of(write(tmp_path, files)))
  names = {
    split: {word.split(b"w")[0] for word in bytes(np.asarray(data.tokens[split]).clip(0, 255).astype(np.uint8)).split()}
    for split in data.tokens
  }
  whole = {split: {name for name in found if name.startswith(b"doc")} for split, found in names.items()}
  assert min(map(len, whole.values())) > 1
  assert not whole["train"] & whole["validation"]
