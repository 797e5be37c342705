"""Data sources in users' files, and new built-in sources: each is a single function or file."""

import json

import numpy as np
import pytest

from bigmodel import data as room
from bigmodel import study
from bigmodel.cli import main
from bigmodel.data import corpus, documents, example_sources, examples, pipeline, sources
from bigmodel.errors import UserError
from bigmodel.study import default_config
from bigmodel.train.run import run_id

SPIRALS = """
import numpy as np

def spirals():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 2, 200)
  radius = rng.uniform(0.5, 4, 200)
  angle = 2 * radius + np.pi * labels
  return {"inputs": np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1), "targets": labels}
"""
COUNTING = """
import numpy as np

def counting():
  return (np.arange(30) + start for start in range(90))
"""
CONFIG = """
from bigmodel.study import default_config

def get_config(arg):
  config = default_config(arg)
  if arg == "decoder":
    config.model.update(width=16, layers=1, head_size=8)
    config.data.update(context=16, heldout_fraction=0.2)
    config.eval.tokens = 64
  config.train.update(steps=2, batch_size=4)
  config.eval.resamples = 2
  return config
"""


def text_config(name, **fields):
  config = default_config()
  config.data.update(name=name, context=16, heldout_fraction=0.2, **fields)
  return config


def example_config(name, family="linear", task="classification", **fields):
  config = default_config(family, task)
  config.data.update(name=name, **fields)
  return config


def source(tmp_path, body, file="mine.py"):
  """Writes a source function `make` with these lines; returns its name."""
  path = tmp_path / file
  path.write_text(f"import numpy as np\n\n{body}\n")
  return f"{path}:make"


@pytest.mark.parametrize(
  ("family", "text", "name", "fields"),
  [
    ("linear", SPIRALS, "spirals", ()),
    ("decoder", COUNTING, "counting", ("tokenizer=ids", "vocab_size=120")),
  ],
)
def test_the_command_trains_on_a_users_function(family, text, name, fields, tmp_path, capsys):
  (tmp_path / "config.py").write_text(CONFIG)
  (tmp_path / "mine.py").write_text(text)
  options = [f"--config.data.{field}" for field in (f"name={tmp_path}/mine.py:{name}", *fields)]
  command = [f"--config={tmp_path}/config.py:{family}", *options, "--json"]
  assert main.main(["train", *command, f"--workdir={tmp_path}/run"]) == 0
  trained = json.loads(capsys.readouterr().out)
  assert trained["status"] == "finished"
  assert trained["bits_per_byte"] is None  # token ids have no bytes
  assert main.main(["data", *command, f"--card={tmp_path}/card.html"]) == 0
  card = json.loads(capsys.readouterr().out)
  assert card["sha256"] == trained["data_sha256"]
  assert card["name"].startswith(f"{name}@")
  assert card["name"] in (tmp_path / "card.html").read_text()


def test_examples_of_a_function_can_have_every_split(tmp_path):
  body = """
def make():
  rows = np.arange(60)
  return {"inputs": np.stack([rows, rows % 7], 1), "targets": rows % 3, "group": rows // 6, "time": rows // 2,
          "heldout": rows >= 48, "classes": ["a", "b", "c"]}
"""
  config = example_config(source(tmp_path, body))
  room.check(config)
  made = examples.prepare(config)
  assert made.places["validation"].tolist() == list(range(48, 60))
  assert made.card["classes"] == ["a", "b", "c"]
  np.testing.assert_allclose(made.mean, [23.5, float(np.mean(np.arange(48) % 7))], rtol=1e-6)
  folds = [
    examples.prepare(study.with_overrides(config, {"data.split": "group", "data.fold": k})).places["validation"]
    for k in range(4)
  ]
  assert all(not set(a // 6) & set(b // 6) for a in folds for b in folds if a is not b)
  by_time = examples.prepare(study.with_overrides(config, {"data.split": "time"}))
  assert by_time.places["train"].max() < by_time.places["validation"].min()


def test_a_data_frame_is_a_table(tmp_path):
  body = """
def make():
  import polars as pl
  return pl.DataFrame({"size": [1.0, None, 3.0, 4.0] * 10, "colour": ["red", "blue"] * 20, "sold": ["no", "yes"] * 20})
"""
  config = example_config(source(tmp_path, body), target="sold", drop=("colour",))
  room.check(config)
  made = examples.prepare(config)
  assert made.card["features"] == ["size"]
  assert made.card["steps"]["impute:median"] == {"size": 10}
  with pytest.raises(UserError, match=r"target: is for tables"):
    examples.prepare(
      example_config(source(tmp_path, "def make(): return {'inputs': [[1.0]], 'targets': [0]}"), target="y")
    )


def test_a_function_with_a_parameter_gets_the_fields_of_the_data(tmp_path):
  body = "def make(data): return {'inputs': np.load(data.path), 'targets': np.arange(40) % 2}"
  np.save(tmp_path / "x.npy", np.random.default_rng(0).random((40, 3)))
  name = source(tmp_path, body)
  first = examples.prepare(example_config(name, path=str(tmp_path / "x.npy")))
  np.save(tmp_path / "y.npy", np.random.default_rng(1).random((40, 3)))
  assert examples.prepare(example_config(name, path=str(tmp_path / "y.npy"))).sha256 != first.sha256


def documents_of(made, split):
  separator = made.vocab - 1
  tokens = np.asarray(made.tokens[split])
  return [part[part != separator].tolist() for part in np.split(tokens, made.starts[split][1:])]


def test_token_documents_are_unchanged_and_held_out_whole(tmp_path):
  body = "def make(): return [list(range(n, n + 25)) for n in range(80)] + [list(range(25))]  # the last is a copy"
  config = text_config(source(tmp_path, body), tokenizer="ids", vocab_size=200)
  room.check(config)
  made = corpus.prepare(config)
  train, heldout = (documents_of(made, split) for split in ("train", "validation"))
  assert sorted(train + heldout) == [list(range(n, n + 25)) for n in range(80)]
  assert 5 < len(heldout) < 30
  assert made.vocab == 200
  tokens = corpus.tokenizer_of(config)
  assert tokens.decode(tokens.encode("3 14 15")) == "3 14 15"
  rows = pipeline.eval_rows(config, made)
  assert rows.bytes is None
  assert len(np.unique(rows.clusters)) > 1


def test_long_documents_are_split_and_given_splits_are_kept(tmp_path):
  body = """
def make():
  rng = np.random.default_rng(0)
  return {"train": [rng.integers(0, 99, 50_000)], "validation": rng.integers(0, 99, (3, 20))}
"""
  made = corpus.prepare(text_config(source(tmp_path, body), tokenizer="ids", vocab_size=100))
  rng = np.random.default_rng(0)
  pieces = documents_of(made, "train")
  whole = rng.integers(0, 99, 50_000).tolist()
  assert len(pieces) > 1
  assert sorted(token for piece in pieces for token in piece) == sorted(whole)
  assert all(str(piece)[1:-1] in str(whole) for piece in pieces)
  assert sorted(documents_of(made, "validation")) == sorted(rng.integers(0, 99, (3, 20)).tolist())


def test_texts_are_unchanged_and_copies_are_not_held_out(tmp_path):
  body = "def make(): return [None, *(f'{a} + {b} = {a + b}' for a in [*range(9), 3] for b in range(9)), None]"
  made = corpus.prepare(text_config(source(tmp_path, body)))
  train, heldout = ({bytes(part).decode() for part in documents_of(made, split)} for split in ("train", "validation"))
  assert train | heldout == {f"{a} + {b} = {a + b}" for a in range(9) for b in range(9)}
  assert not train & heldout
  assert made.card["splits"]["validation"]["documents"] == len(heldout) > 5
  assert made.card["steps"][documents.NULL] == 2
  assert made.heldout_bytes is not None
  assert made.heldout_bytes.sum() == sum(map(len, heldout))


def test_a_corpus_is_cached_by_its_content(tmp_path, monkeypatch):
  body = "def make(): return [f'text {i} of {__name__[:8]} and some words' for i in range(60)]"
  first = corpus.prepare(text_config(source(tmp_path, body)))
  monkeypatch.setattr(corpus, "_build", None)  # nothing may be built
  again = corpus.prepare(text_config(source(tmp_path, f"{body}  # the same", "other.py")))
  assert again.sha256 == first.sha256
  monkeypatch.undo()
  changed = corpus.prepare(text_config(source(tmp_path, body.replace("some", "many"))))
  assert changed.sha256 != first.sha256


def test_changed_content_and_another_file_change_the_run_id(tmp_path):
  body = "def make(): return {'inputs': np.arange(40.0)[:, None], 'targets': np.arange(40) % 2}"

  def run(name):
    config = example_config(name)
    made = examples.prepare(config)
    return run_id(study.resolve(config, made)), made.sha256

  base = run(source(tmp_path, body))
  (tmp_path / "elsewhere").mkdir()
  assert run(source(tmp_path / "elsewhere", body)) == base  # the same file in another folder
  commented = run(source(tmp_path, f"{body}  # comment"))
  assert commented[1] == base[1]
  assert commented[0] != base[0]
  (tmp_path / "x.npy").write_bytes(b"")
  np.save(tmp_path / "x.npy", np.arange(40.0)[:, None])
  reads = source(
    tmp_path, f"def make(): return {{'inputs': np.load('{tmp_path}/x.npy'), 'targets': np.arange(40) % 2}}"
  )
  before = run(reads)
  np.save(tmp_path / "x.npy", np.arange(1.0, 41.0)[:, None])
  after = run(reads)
  assert before[0] != after[0]
  assert before[1] != after[1]


X = "np.ones((6, 2))"


@pytest.mark.parametrize(
  ("kind", "body", "message"),
  [
    ("examples", "make = 3", "make@.* is an object of type int and not a function"),
    ("examples", "def make(): 1 / 0", "make@.* raised ZeroDivisionError: division by zero"),
    (
      "examples",
      "def make(): pass",
      "make@.* returned None; examples are a dict with the arrays 'inputs' and 'targets'",
    ),
    ("examples", f"def make(): return {X}", r"returned an array of shape \(6, 2\) and type float64"),
    ("examples", f"def make(): return {{'inputs': {X}}}", "returned no targets"),
    ("examples", f"def make(): return {{'inputs': {X}, 'targets': [0, 1], 'label': 1}}", "unknown key 'label'"),
    ("examples", f"def make(): return {{'inputs': {X}, 'targets': [0, 1]}}", r"6 inputs and targets of shape \(2,\)"),
    (
      "examples",
      "def make(): return {'inputs': [[1], [1, 2]], 'targets': [0, 1]}",
      "inputs whose rows differ in shape",
    ),
    ("examples", "def make(): return {'inputs': [['a'], ['b']], 'targets': [0, 1]}", "inputs are not numbers but <U1"),
    (
      "examples",
      "def make(): return {'inputs': [[1.0], [np.nan]], 'targets': [0, 1]}",
      "inputs of example 1 are not finite",
    ),
    (
      "examples",
      f"def make(): return {{'inputs': {X}, 'targets': np.arange(6) % 2, 'heldout': np.arange(6)}}",
      "heldout is int64",
    ),
    (
      "examples",
      f"def make(): return {{'inputs': {X}, 'targets': np.arange(6) % 2, 'classes': 2}}",
      "classes that are .* int",
    ),
    ("examples", f"def make(): return {{'inputs': {X}, 'targets': [0, 1, 2, 3, 4, 5.5]}}", "has the label 5.5"),
    ("text", "def make(): return 'one text'", "returned an object of type str; text is a list of documents"),
    ("text", "def make(): return ['a text', 3.5]", "a document, number 1, that is an object of type float"),
    (
      "text",
      "def make(): return [np.ones(3)]",
      r"a document, number 0, that is an array of shape \(3,\) and type float64",
    ),
    ("text", "def make(): return {'train': ['a']}", "a dict with the keys 'train'; text is a list"),
    ("text", f"def make(): return {{'inputs': {X}, 'targets': [0]}}", "for examples, set config.data.kind=examples"),
    ("text", "def make(): return []", "the corpus is empty"),
    ("text", "def make(): return ['some text']", "holds out none of the 1 documents of make@"),
    ("text", "def make(): return {'train': ['some text'], 'validation': []}", "returned no text in 'validation'"),
    ("text", "def make(): return [[1, 2, 3]]", "returns token ids, which need tokenizer=ids and a vocab_size"),
    (
      "text",
      "def make(): return [str(np.random.default_rng().random()) for _ in range(90)]",
      "give its random numbers a",
    ),
    (
      "ids",
      "def make(): return {'train': ['1 2'], 'validation': ['3 more']}",
      "ids; the text '3 more.*' is not made of whole numbers",
    ),
    (
      "ids",
      "def make(): return {'train': [[1, 2, 9]], 'validation': [[3]]}",
      "from 0 to vocab_size - 2, and there is 9",
    ),
  ],
)
def test_wrong_values_are_refused_in_one_line(kind, body, message, tmp_path):
  name = source(tmp_path, body)
  config = example_config(name) if kind == "examples" else text_config(name)
  if kind == "ids":
    config.data.update(tokenizer="ids", vocab_size=10, heldout_fraction=0.5)
  room.check(config)
  with pytest.raises(UserError, match=message) as caught:
    pipeline.prepare(config)
  assert "\n" not in str(caught.value)


def test_the_command_ends_with_code_2_and_one_line(tmp_path, capsys):
  (tmp_path / "config.py").write_text(CONFIG)
  name = source(tmp_path, "def make(): return {'inputs': [[1.0], [2.0]], 'targets': [0, 1, 2]}")
  command = [f"--config={tmp_path}/config.py:linear", f"--workdir={tmp_path}/run"]
  for given in (name, name.replace("make", "mak"), name.replace("mine.py", "absent.py")):
    assert main.main(["train", *command, f"--config.data.name={given}"]) == 2
    error = capsys.readouterr().err.strip()
    assert "config.data.name: " in error
    assert "\n" not in error
  assert not (tmp_path / "run").exists()


def test_a_new_built_in_source_is_one_file(tmp_path, monkeypatch):
  (tmp_path / "steps_of_stairs.py").write_text(
    "import numpy as np\n"
    "from bigmodel.data.sources import Source\n\n"
    "def read(data):\n"
    "  return {'inputs': np.arange(40.0)[:, None], 'targets': np.arange(40) // 20}\n\n"
    "SOURCE = Source(read)\n"
  )
  config = example_config("steps_of_stairs")
  with pytest.raises(UserError, match="no 'steps_of_stairs'"):
    room.check(config)
  monkeypatch.setattr(example_sources, "__path__", [*example_sources.__path__, str(tmp_path)])
  sources.names.cache_clear()
  room.check(config)
  assert examples.prepare(config).facts["outputs"] == 2
  monkeypatch.undo()
  sources.names.cache_clear()


def test_every_built_in_source_is_documented_in_its_field_and_loads():
  for kind in room.GROUPS:
    meaning = room.declared(kind)["name"].meaning
    for name in sources.names(kind):
      config = default_config() if kind == "text" else default_config("linear")
      config.data.name = name
      assert isinstance(sources.find(config.data), sources.Source)
      assert name in meaning or (kind, name) == ("text", "tfds")
  with pytest.raises(UserError, match="no 'text_files', which is a source of text"):
    sources.find(example_config("text_files").data)
