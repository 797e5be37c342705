"""Damaged files of runs, and config files that are refused: a result, or one line that names the file."""

import argparse
import itertools
import json
import os
import random
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigmodel import record
from bigmodel.cli import main
from bigmodel.errors import UserError
from bigmodel.train import configs, trained
from bigmodel.train.checkpoint import Checkpoints
from bigmodel.train.run import read_status


def mutated(seed, content):
  """The bytes with a few of them flipped, cut, inserted or repeated."""
  random_, data = random.Random(seed), bytearray(content)
  for _ in range(random_.randint(1, 3)):
    at, length = random_.randrange(len(data) + 1), random_.randint(1, 30)
    match random_.randrange(4) if seed % 2 else 0:  # even seeds keep the length
      case 0 if at < len(data):
        data[at] ^= 1 << random_.randrange(8)
      case 1:
        del data[at : at + length]
      case 2:
        data[at:at] = random_.randbytes(length)
      case _:
        data[at:at] = data[at : at + length]
  return bytes(data)


TIMES = itertools.count(1_700_000_000, 10)
CONTENTS = st.one_of(st.none(), st.binary(max_size=40), st.integers(0, 1 << 40))


def changed(content, change):
  """The bytes that take the place of `content`; None: the file is missing."""
  return mutated(change, content) if isinstance(change, int) else change


@pytest.fixture(scope="module")
def run(tmp_path_factory, corpus_dir):
  """The folder of a finished run of a tiny decoder, which has checkpoints of the steps 2 and 4."""
  folder = tmp_path_factory.mktemp("finished")
  config = folder / "config.py"
  fields = {"data.name": "text_files", "data.path": f"{corpus_dir}/*.jsonl", "data.heldout_fraction": 0.2}
  fields |= {"data.context": 16, "model.width": 8, "model.layers": 1, "model.head_size": 8, "eval.tokens": 64}
  fields |= {"train.steps": 4, "train.batch_size": 4, "train.checkpoint_every": 2, "parallel.data": 1}
  config.write_text(
    "from bigmodel.study import default_config\n\n\ndef get_config(arg=None):\n  config = default_config()\n"
    f"  config.update_from_flattened_dict({fields!r})\n  return config\n"
  )
  assert main.main(["train", f"--config={config}", f"--workdir={folder / 'run'}"]) == 0
  return folder / "run"


def copied(run, name):
  """A copy of the run next to it, as it was at first."""
  copy = run.with_name(name)
  shutil.rmtree(copy, ignore_errors=True)
  shutil.copytree(run, copy)
  return copy


@pytest.mark.fuzz
@given(st.randoms(use_true_random=False), CONTENTS)
def test_a_damaged_checkpoint_is_never_read(run, caplog, random_, change):
  """The newest undamaged checkpoint is read, with the numbers that were saved, or the command is refused."""
  caplog.clear()
  whole, copy = run / "checkpoints", run.with_name("damaged")
  if not copy.exists():
    shutil.copytree(whole, copy)
  contents = {file.relative_to(whole): file.read_bytes() for file in sorted(whole.rglob("*")) if file.is_file()}
  damaged = random_.sample(sorted(contents), random_.randint(1, 2))
  for name in damaged:
    after = changed(contents[name], change)
    (copy / name).unlink() if after is None else (copy / name).write_bytes(after)
  store = Checkpoints(copy)
  assert store.steps() == [2, 4]
  step = store.newest_sound()
  assert step in (None, 2, 4)
  assert step == 4 or "is damaged" in caplog.text
  if step is not None:  # its files are as they were saved, so its arrays are
    mine = [name for name in contents if name.parts[0] == str(step)]
    assert all((copy / name).read_bytes() == contents[name] for name in mine)
  for name in damaged:
    (copy / name).write_bytes(contents[name])


READERS = {
  "config.json": configs.read_config_with_mesh,
  "provenance.json": configs.read_config_with_mesh,
  "record.json": record.read,
  "status.json": read_status,
}


@pytest.mark.fuzz
@given(st.sampled_from(sorted(READERS)), CONTENTS)
def test_damaged_facts_of_a_run_are_read_or_refused(run, name, change):
  copy = run.with_name("facts")
  if not copy.exists():
    copy.mkdir()
    for other in READERS:
      shutil.copyfile(run / other, copy / other)
  after = changed((run / name).read_bytes(), change)
  (copy / name).unlink() if after is None else (copy / name).write_bytes(after)
  try:
    READERS[name](copy)
  except UserError as error:
    assert name in str(error) or "config." in str(error)  # noqa: PT017
    assert len(str(error).splitlines()) == 1  # noqa: PT017
  shutil.copyfile(run / name, copy / name)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("model.width", 9, "is .* by config.json, which was changed since|head_size|heads"),
    ("model.layers", 2, "by config.json, which was changed since"),
    ("model.layers", "2", "config.json: is corrupt .model.layers: '2' is not of type int"),
    ("model.layers", None, "None is not of type int"),
    ("model.width", -8, "config.model.width"),
    ("model.heads", 0, "config"),
    ("model.family", "decodr", "did you mean 'decoder'"),
    ("model.family", ["decoder"], "is not a text"),
    ("optim.beta1", {"a": 1}, "config.json: is corrupt"),
    ("model", 3, "'model' is not the name of a field"),
    ("train.accumulate", 7, "accumulate"),
  ],
)
def test_a_changed_config_of_a_run_is_refused(run, field, value, message):
  copy = copied(run, "changed")
  stored = json.loads((run / "config.json").read_text())
  (copy / "config.json").write_text(json.dumps(stored | {field: value}))
  with pytest.raises(UserError, match=message) as error:
    trained.load(str(copy))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("verb", ["eval", "train"])
def test_commands_fall_back_to_an_older_checkpoint(run, verb, inside):
  copy = copied(run, "older")
  newest = copy / "checkpoints" / "4" / "SEAL"
  newest.write_bytes(mutated(1, newest.read_bytes()))
  (copy / "record.json").unlink()
  config = (f"--config={run.with_name('config.py')}",) if verb == "train" else ()
  assert inside(verb, f"--workdir={copy}", *config)[0] == 0
  assert Checkpoints(copy / "checkpoints").newest_sound() == (4 if verb == "train" else 2)


@pytest.mark.parametrize(
  ("verb", "more"),
  [("eval", ()), ("generate", ("--prompt=a", "--tokens=2")), ("export", ("--type=llama", "--to={folder}/exported"))],
)
def test_commands_refuse_damaged_checkpoints(run, verb, more, inside):
  copy = copied(run, "refused")
  for step in (2, 4):
    (copy / "checkpoints" / str(step) / "SEAL").write_bytes(b"")
  before = {path: path.stat().st_mtime_ns for path in run.parent.rglob("*")}
  code, out, err = inside(verb, f"--workdir={copy}", *(option.format(folder=run.parent) for option in more))
  assert code == 2
  assert "no sound checkpoint" in err
  assert out == ""
  assert {path: path.stat().st_mtime_ns for path in run.parent.rglob("*")} == before


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("configs")


def refused_or_loaded(folder, content, overrides=()):
  """Loads a config file as the commands do; returns the message of a refusal, or ''."""
  from bigmodel.cli import session
  from bigmodel.study import check

  path = folder / "a.py"
  path.write_bytes(content)
  os.utime(path, (next(TIMES),) * 2)  # otherwise Python may run what it compiled before
  arguments = argparse.Namespace(config=str(path), overrides=list(overrides))
  try:
    config, _ = session.load(arguments)
    check(config)
  except UserError as error:
    assert len(str(error).splitlines()) == 1  # noqa: PT017
    return str(error)
  return ""


VALID = b"""from bigmodel.study import default_config

def get_config(arg=None):
  config = default_config()
  config.data.update(name="text_files", path="a.txt", context=32)
  config.model.update(width=8, layers=2)
  config.train.steps = 10
  config.optim.lr = 1e-3
  return config
"""


@pytest.mark.parametrize(
  ("body", "message"),
  [
    ("", "has no get_config"),
    ("\0", "does not load: "),
    ("get_config = 3", "get_config: TypeError"),
    ("def get_config(arg=None): return None", "get_config returns NoneType and not a config"),
    ("def get_config(arg=None): return 1 / 0", "ZeroDivisionError: division by zero"),
    ("def get_config(arg=None): raise OSError('two\\nlines')", "get_config: OSError: two$"),
    ("from ml_collections import ConfigDict\ndef get_config(arg=None): return ConfigDict()", "config.model: missing"),
  ],
)
def test_config_files_that_are_refused(folder, body, message):
  import re

  assert re.search(message, refused_or_loaded(folder, body.encode()))


def test_values_of_a_wrong_type_are_refused(folder):
  for line, message in (("config.model.width = None", "config.model.width: None is not of type int"),):
    body = VALID.replace(b"  return", f"  {line}\n  return".encode())
    assert message in refused_or_loaded(folder, body)
  assert refused_or_loaded(folder, VALID) == ""
