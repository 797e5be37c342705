"""Any bytes in any file that a command reads: a result, or exit code 2 with one line and nothing written."""

import dataclasses
import functools
import gzip
import io
import itertools
import json
import os
import re
import shutil
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from PIL import Image
from safetensors.numpy import load_file, save

from bigmodel.cli import main
from bigmodel.config import flatten
from bigmodel.errors import UserError
from bigmodel.study import default_config
from bigmodel.train import single_run

CONFIG = """from bigmodel.study import default_config

def get_config(arg=None):
  config = default_config({family!r}, {task!r})
  config.update_from_flattened_dict({fields!r})
  return config
"""
TINY = {"model.width": 8, "model.layers": 1, "model.head_size": 8, "eval.tokens": 64, "parallel.data": 1}
TINY |= {"train.steps": 4, "train.batch_size": 4, "train.checkpoint_every": 2, "data.context": 16}
WORDS = ("the", "model", "reads", "a", "word", "and", "guesses", "which", "of", "these", "comes", "next", "in", "line")
TEXTS = [" ".join(WORDS[i * (k + 3) % len(WORDS)] for i in range(60 + k)) for k in range(12)]


def config(folder, family="decoder", task="", **fields):
  """Writes the config of a tiny model to `folder`/config.py."""
  fields = (TINY if family == "decoder" else {}) | {name.replace("__", "."): value for name, value in fields.items()}
  (folder / "config.py").write_text(CONFIG.format(family=family, task=task, fields=fields))


def rows(texts):
  return "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)).encode()


# Each makes the files that a command reads in an empty folder, and returns another valid content of the damaged file.


def points(folder):
  lines = ["run,x,loss", *(f"r{i},{10**i}k,{2 + 3 * 0.7**i:.4f}" for i in range(6))]
  (folder / "points.csv").write_text("\n".join(lines) + "\n")
  return "\n".join(line.replace(",", ";").replace(".", ",") for line in lines).encode()


def curves(folder):
  lines = ["curve,step,loss,lr", *(f"{run},{step},{4 / step**0.1:.3f},1e-3" for run in "ab" for step in range(1, 9))]
  (folder / "curves.csv").write_text("\n".join(lines) + "\n")
  return points(folder)


def table(folder):
  lines = ["age,colour,day,sold", *(f"{20 + i}.5,{'rgb'[i % 3]},2024-01-{i + 1:02d},{'ny'[i % 2]}" for i in range(24))]
  (folder / "table.csv").write_text("\n".join(lines) + "\n")
  config(folder, "mlp", "classification", data__name="table", data__path=f"{folder}/table.csv", data__target="sold")
  return "\n".join(lines[::-1]).replace(",", "\t").encode()


def corpus(folder):
  (folder / "texts.jsonl").write_bytes(rows(TEXTS))
  config(folder, data__name="text_files", data__path=f"{folder}/texts.*", data__heldout_fraction=0.3)
  return rows(TEXTS[::-1])


def packed(folder):
  corpus(folder)
  (folder / "texts.jsonl").unlink()
  (folder / "texts.jsonl.gz").write_bytes(gzip.compress(rows(TEXTS), mtime=0))
  return gzip.compress(rows(TEXTS[:9]), mtime=0)


def pictures(folder):
  config(folder, "mlp", data__name="image_folder", data__path=f"{folder}/pictures")
  random = np.random.default_rng(0)
  for i in range(8):
    path = folder / "pictures" / ("cat", "dog")[i % 2] / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.integers(0, 256, (6, 5, 3), np.uint8)).save(path)
  file = io.BytesIO()
  Image.fromarray(random.integers(0, 256, (6, 5), np.uint8)).save(file, "tiff", compression="tiff_lzw")
  return file.getvalue()


def trained(folder):
  """A finished run with checkpoints of the steps 2 and 4, and questions for it."""
  corpus(folder)
  assert main.main(["train", f"--config={folder}/config.py", f"--workdir={folder}/run"]) == 0
  lines = [{"question": "the", "choices": [" a", " next"], "answer": i % 2} for i in range(3)]
  (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
  lines = [{"prompt": "the", "completion": " a"}] * 2
  (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
  return (folder / "run" / "status.json").read_bytes()


def exported(folder):
  """A tiny run as a folder of Hugging Face."""
  trained(folder)
  assert main.main(["export", f"--workdir={folder}/run", "--type=llama", f"--to={folder}/llama"]) == 0
  tensors = load_file(folder / "llama" / "model.safetensors")
  return save({name: tensor.astype(np.float16) for name, tensor in reversed(tensors.items())})


JSON = [b"null", b"-1", b"0", b"1e999", b"9" * 400, b"[]", b"{}", b'"x"', b"NaN", b"true", b"1.5", b'[{"a": [1]}]']
JSON += [b'"\\ud800"', b"[" * 2000, b'{"id": 1}', b"256", b'"text"', b"\xef\xbb\xbf", b"\n"]
CELLS = [b",", b";", b"\t", b'"', b"\r\n", b"\n\n", b"#", b"1,234.5", b"1.234,5", b"4M", b"77%", b"$3", b"nan", b"inf"]
CELLS += [b"-1", b"0", b"1e400", b"9" * 30, b"?", b"", b"\xff\xfe", b"\0", b"loss", b"x", b"2024-13-01", b"n/a"]
PYTHON = [b"None", b"-1", b"0", b"1e400", b"[]", b"'x'", b"(", b"\0", b"\n", b"10**400", b"lambda: 0", b"\xe9", b"\\"]


@dataclasses.dataclass(frozen=True)
class Kind:
  make: object
  files: tuple[str, ...]  # one of them is damaged in each example
  command: str
  soup: list[bytes]
  cost: int = 1  # for an example that takes more than 30 ms: the number of examples is divided by this


DATA = "data --config={folder}/config.py"
IMPORT = "import {folder}/llama --workdir={folder}/new"
FACTS = ("run/config.json", "run/record.json", "run/status.json", "run/provenance.json")
EVAL = "eval --workdir={folder}/run --"
GENERATE = "generate --workdir={folder}/run --prompt=the --tokens=1"
KINDS = {
  "points": Kind(points, ("points.csv",), "fit {folder}/points.csv --x=x --loss=loss --law=power", CELLS, 4),
  "curves": Kind(curves, ("curves.csv",), "forecast {folder}/curves.csv --schedule=cosine:steps=9,end=0 --at=9", CELLS),
  "table": Kind(table, ("table.csv",), DATA, CELLS),
  "texts": Kind(corpus, ("texts.jsonl",), DATA, JSON, 2),
  "packed texts": Kind(packed, ("texts.jsonl.gz",), DATA, JSON),
  "pictures": Kind(pictures, ("pictures/cat/0.png", "pictures/dog/3.png"), DATA, [b"IDAT", b"\0" * 4]),
  "choices": Kind(trained, ("questions.jsonl",), EVAL + "choices={folder}/questions.jsonl", JSON, 2),
  "completions": Kind(trained, ("pairs.jsonl",), EVAL + "completions={folder}/pairs.jsonl", JSON, 2),
  "weights": Kind(exported, ("llama/*.safetensors",), IMPORT, [*JSON, b'"F32"', b'"BF16"', b"\0" * 8]),
  "config.json": Kind(exported, ("llama/config.json", "llama/generation_config.json"), IMPORT, JSON),
  "tokenizer": Kind(exported, ("llama/tokenizer.json", "llama/tokenizer_config.json"), IMPORT, JSON),
  "facts of a run": Kind(trained, FACTS, GENERATE, JSON),
  "checkpoints": Kind(trained, ("run/checkpoints/*/**/*",), GENERATE, JSON, 2),
  "config": Kind(corpus, ("config.py",), "train --config={folder}/config.py --workdir={folder}/new", PYTHON),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """`made(make)`: the folder in which `make` has made its files, and what it returned; each is made once."""

  @functools.cache
  def of(make):
    folder = tmp_path_factory.mktemp(make.__name__)
    with pytest.MonkeyPatch.context() as patch:
      patch.setenv("BIGMODEL_CACHE", str(folder / "cache"))
      (folder / "cache").mkdir()
      return folder, make(folder)

  return of


def state(folder, prefix=""):
  """The sizes and times of all files in a folder; locks, compiled programs and those of Python are no results."""
  found = {}
  for entry in os.scandir(folder):
    if entry.name not in ("locks", "xla", "__pycache__"):
      name, facts = prefix + entry.name, entry.stat()
      found[name] = None if entry.is_dir() else (facts.st_size, facts.st_mtime_ns)
      found |= state(entry.path, f"{name}/") if entry.is_dir() else {}
  return found


def remove(folder, names):
  for name in sorted(names):
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def check(words, folder, capfd, of_python=False, may_prepare=False):
  """Runs a command; checks its exit code and message and that it writes nothing if it is refused.

  A message about a file `of_python` may name its exception. Where data are valid, they may have been prepared before
  something else is refused.
  """
  before = state(folder)
  with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("ignore", DeprecationWarning)
    code = main.main(words)
  written = {name for name, facts in state(folder).items() if before.get(name, ()) != facts}
  lines = capfd.readouterr().err.splitlines()
  remove(folder, {name for name in written - set(before) if not (may_prepare and name.startswith("cache/"))})
  assert [str(one.message) for one in warned] == []
  assert code in (0, 2), lines
  if code == 2:
    assert len(lines) == 1
    assert lines[0].startswith(f"bigmodel {words[0]}: ")
    assert len(lines[0]) <= 600 + 2 * len(str(folder))
    assert of_python or not re.search(r"[a-z]Error\b|Exception|Traceback", lines[0]), lines
    assert {name for name in written if not re.fullmatch(r"cache/.*" if may_prepare else r"cache/\w+", name)} == set()
  assert set(before) <= set(state(folder))


PLACES = some.integers(0, 1 << 16)
NAMES = some.sampled_from(("flip", "cut", "insert", "double", "splice", "end", "token"))
CHANGES, TOKENS = (
  some.tuples(names, PLACES, some.integers(1, 30), some.binary(min_size=1, max_size=9))
  for names in (NAMES, some.just("token"))
)
# Any bytes in place of a file, or changes of a valid one.
LISTS = [some.lists(one, min_size=1, max_size=4) for one in (CHANGES, TOKENS, TOKENS)]
CONTENTS = some.tuples(some.integers(0, 99), some.one_of(some.binary(max_size=200), *LISTS))
TOKEN = re.compile(rb'"(?:[^"\\\n]|\\.)*"|[^\s,;:{}\[\]"=]+')


def changed(content, changes, other, soup):
  """The content after the changes; a token, such as a number, may become one of `soup`."""
  for name, place, length, drawn in changes:
    at = place % (min(len(content), 500) + 1) if length % 2 else place % (len(content) + 1)
    part = content[at : at + length]
    if name == "flip":
      content = content[:at] + bytes(a ^ b for a, b in zip(part, drawn, strict=False)) + content[at + len(drawn) :]
    elif name == "cut":
      content = content[:at] + content[at + length :]
    elif name == "insert":
      content = content[:at] + drawn + content[at:]
    elif name == "double":
      content = content[:at] + part + content[at:]
    elif name == "splice":
      content = content[:at] + other[place % (len(other) + 1) :]
    elif name == "end":
      content = content[:at]
    elif token := TOKEN.search(content, at):
      content = content[: token.start()] + soup[drawn[0] % len(soup)] + content[token.end() :]
  return content


TIMES = itertools.count(1_700_000_000, 10)


def enough(monkeypatch):
  """Commands that train stop where the config is checked and the data are read."""
  whole = single_run.single_run

  def only_checked(*arguments):
    whole(*arguments)
    raise UserError("enough")

  monkeypatch.setattr(single_run, "single_run", only_checked)


@pytest.mark.fuzz
@pytest.mark.parametrize("name", KINDS)
def test_any_bytes_give_a_result_or_one_line(name, made, capfd, monkeypatch):
  kind = KINDS[name]
  folder, other = made(kind.make)
  monkeypatch.setenv("BIGMODEL_CACHE", str(folder / "cache"))
  enough(monkeypatch)
  files = sorted(path for pattern in kind.files for path in folder.glob(pattern) if path.is_file())
  whole = {path: path.read_bytes() for path in files}
  words = [word.format(folder=folder) for word in kind.command.split()]
  capfd.readouterr()

  @settings(max_examples=settings().max_examples // kind.cost)
  @given(CONTENTS)
  def fuzz(content):
    which, change = content
    file = files[which % len(files)]
    file.write_bytes(change if isinstance(change, bytes) else changed(whole[file], change, other, kind.soup))
    os.utime(file, (next(TIMES),) * 2)  # otherwise Python may run the config file that it compiled before
    try:
      check(words, folder, capfd, of_python=name == "config", may_prepare=name == "config")
    finally:
      file.write_bytes(whole[file])

  fuzz()


FIELDS = [*sorted(flatten(default_config())), "", "model", "model.", ".", "model.widht", "model.width.x"]
VALUES = ["", "0", "-1", "1.5", "None", "True", "[]", "()", "{}", "'a'", "x", "1e3", "(" * 300, "{[]: 1}", "9" * 5000]
VALUES += ["1e400", "nan", "a/b.py:c", "[1]", "(None,)", "[[]]", "['']", "1 name=x", "\udcff", "\n", "1" * 5000]


@pytest.mark.fuzz
def test_any_override_gives_a_result_or_one_line(made, capfd, monkeypatch, tmp_path):
  folder, _ = made(corpus)
  monkeypatch.chdir(tmp_path)  # where folders go that a value names
  monkeypatch.setenv("BIGMODEL_CACHE", str(folder / "cache"))
  enough(monkeypatch)
  capfd.readouterr()

  @given(some.sampled_from(FIELDS), some.sampled_from(VALUES) | some.text(max_size=8))
  def fuzz(field, value):
    words = ["train", f"--config={folder}/config.py", f"--workdir={folder}/new", f"--config.{field}={value}"]
    check(words, folder, capfd, may_prepare=True)

  fuzz()
