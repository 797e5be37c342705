"""A run stays the same run when its corpus is moved, renamed or named by another path."""

import shutil

import numpy as np
import pytest

from bigmodel.errors import UserError
from bigmodel.files import absolute
from bigmodel.study import Listed, Study, run_to_end
from bigmodel.train import ownership, places, resolution, trained
from bigmodel.train.single_run import train_single_run
from bigmodel.train.stop import StopRequest


@pytest.fixture
def moved(config, corpus_dir, tmp_path):
  """Returns a config whose corpus is in a folder of its own, and `move(name)`, which renames that folder."""
  shutil.copytree(corpus_dir, tmp_path / "corpus")
  config.train.update(steps=2, checkpoint_every=2)
  config.data.path = str(tmp_path / "corpus")

  def move(name):
    shutil.move(config.data.path, tmp_path / name)
    config.data.path = str(tmp_path / name)

  return config, move


def test_a_run_is_resumed_and_evaluated_when_its_corpus_was_moved(moved, tmp_path, monkeypatch):
  config, move = moved
  first = train_single_run(config, tmp_path / "run", quiet=True)
  stored = (tmp_path / "run" / "config.json").read_text()
  (tmp_path / "run" / "record.json").unlink()  # so that the run goes on from its checkpoint
  move("renamed")
  with (
    ownership.exclusive(absolute(tmp_path / "run"), StopRequest()),
    pytest.raises(UserError, match="is being trained by"),
  ):
    train_single_run(config, tmp_path / "run", quiet=True)
  assert not (tmp_path / "run" / places.FILE).exists()
  again = train_single_run(config, tmp_path / "run", quiet=True)
  assert (again.run_id, again.loss_eval, again.result_sha256) == (first.run_id, first.loss_eval, first.result_sha256)
  assert (tmp_path / "run" / "config.json").read_text() == stored
  monkeypatch.chdir(tmp_path)
  config.data.path = "renamed"
  assert train_single_run(config, tmp_path / "run", quiet=True).run_id == first.run_id
  config.data.path = str(tmp_path / "renamed")
  train_single_run(config, tmp_path / "run", quiet=True)
  rows = resolution.held_out_rows(trained.load(str(tmp_path / "run")).config)
  shutil.rmtree(tmp_path / "renamed")
  of_cache = resolution.held_out_rows(trained.load(str(tmp_path / "run")).config)  # the files are gone, not the tokens
  assert np.array_equal(of_cache.rows, rows.rows)
  config.data.heldout_fraction = 0.3
  with pytest.raises(UserError, match="nothing is there"):
    train_single_run(config, tmp_path / "other", quiet=True)


def test_other_content_at_the_path_is_another_run(moved, tmp_path):
  config, move = moved
  train_single_run(config, tmp_path / "run", quiet=True)
  move("renamed")
  with (tmp_path / "renamed" / "part0.jsonl").open("a") as file:
    file.write('{"text": "and one more"}\n')
  with pytest.raises(UserError, match=r"holds a run of another config \(data.path: .*renamed.*data.sha256"):
    train_single_run(config, tmp_path / "run", quiet=True)


def test_a_study_keeps_its_runs_when_its_corpus_was_moved(moved, tmp_path):
  config, move = moved
  design = Study("two", "", Listed([{"seed": 0}, {"seed": 1}]), laws=())
  run_to_end(config, design, tmp_path / "study", quiet=True)
  before = {path.name for path in (tmp_path / "study" / "runs").iterdir()}
  move("renamed")
  run_to_end(config, design, tmp_path / "study", quiet=True)
  assert {path.name for path in (tmp_path / "study" / "runs").iterdir()} == before
  run = tmp_path / "study" / "runs" / min(before)
  assert trained.load(str(run)).config.data.path == str(tmp_path / "renamed")


def test_parts_of_a_mixture_may_be_moved_if_they_keep_their_names(config):
  config.data.update(path="a/x", mixture=("2 path=a/y text_key=body",))
  flat = {"data.path": "b/x", "data.mixture": ["2 path=b/y text_key=body"], "data.sha256": "1"}
  assert set(places.stored(config, "1", flat)) == {"data.path", "data.mixture"}
  assert places.stored(config, "2", flat) == {}
  for text in ("3 path=b/y text_key=body", "2 path=b/y", "2 path=b/z text_key=body"):
    assert places.stored(config, "1", flat | {"data.mixture": [text]}) == {}, text
