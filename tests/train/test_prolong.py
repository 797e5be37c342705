"""A run under a constant rate is prolonged in its folder, with the bits of a whole run of the new length."""

import pytest

from bigmodel import record
from bigmodel.errors import Interrupted, UserError
from bigmodel.study import with_overrides
from bigmodel.train import metrics, single_run


def train(config, folder, **changes):
  changed = with_overrides(config, {name.replace("__", "."): value for name, value in changes.items()})
  return single_run.train_single_run(changed, folder, quiet=True)


@pytest.fixture
def constant(config):
  config.data.repeat = True
  config.optim.update(schedule="constant", warmup=0.5, final=0.1)
  config.train.update(steps=8, log_every=2, checkpoint_every=3)
  config.eval.every = 4
  return config


def test_a_prolonged_run_has_the_bits_of_a_whole_run_of_that_length(constant, tmp_path, monkeypatch, stop_at):
  whole = train(constant, tmp_path / "whole", train__steps=16, optim__warmup=0.25)
  first = train(constant, tmp_path / "run")
  assert first.steps == 8
  with monkeypatch.context() as patched:  # interrupted on the way, and then resumed
    patched.setattr(single_run.ownership, "_claim", lambda *_: None)
    patched.setattr(single_run, "interruptible", lambda: _Stops(stop_at(3)))
    with pytest.raises(Interrupted):
      train(constant, tmp_path / "run", train__steps=16, optim__warmup=0.25)
  assert record.read(tmp_path / "run") is None
  longer = train(constant, tmp_path / "run", train__steps=16, optim__warmup=0.25)
  assert longer.result_sha256 == whole.result_sha256
  assert longer.run_id == whole.run_id != first.run_id
  assert losses(tmp_path / "run") == losses(tmp_path / "whole")
  assert f'"{first.run_id}"' in (tmp_path / "run" / "attempts" / "000.json").read_text()
  again = train(constant, tmp_path / "run", train__steps=16, optim__warmup=0.25)
  assert again == longer
  tokens = 24 * longer.batch_tokens
  assert train(constant, tmp_path / "run", train__steps=0, train__tokens=tokens, optim__warmup=1 / 6).steps == 24


def losses(folder):
  return {row["step"]: row["loss"] for row in metrics.read(folder)}


class _Stops:
  def __init__(self, stop):
    self.stop = stop

  def __enter__(self):
    return self.stop

  def __exit__(self, *_):
    pass


def test_what_cannot_be_prolonged_is_refused_with_what_to_do(constant, tmp_path):
  ended = train(constant, tmp_path)
  content = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
  for changes, message in (
    ({"train__steps": 4, "optim__warmup": 1.0}, "with 8 steps, not 4: a run can be prolonged, not shortened"),
    ({"train__steps": 16}, "a warm-up of 4 steps, not 8: to prolong it, set --config.optim.warmup=0.25"),
    ({"train__steps": 16, "optim__warmup": 0.25, "optim__lr": 0.1}, "holds a run of another config (optim.lr: 0.003"),
    ({"train__steps": 16, "optim__warmup": 0.25, "seed": 1}, "holds a run of another config ("),
    ({"optim__warmup": 0.25}, "holds a run of another config (optim.warmup: 0.5 -> 0.25)"),
  ):
    with pytest.raises(UserError) as caught:
      train(constant, tmp_path, **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
  assert content == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
  assert train(constant, tmp_path) == ended


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_schedules_with_an_end_are_refused(config, tmp_path, schedule):
  config.optim.update(schedule=schedule, warmup=0.0)
  config.train.steps = 2
  train(config, tmp_path)
  message = f"with 2 steps, not 4: the learning rate of its {schedule} schedule depends on the number of steps; choose"
  with pytest.raises(UserError, match=message):
    train(config, tmp_path, train__steps=4)
  config.optim.final = 0.0
  train(config, tmp_path / "to zero")
  with pytest.raises(UserError, match=r"config.optim.schedule=constant and optim.final=0\.1, which can be prolonged"):
    train(config, tmp_path / "to zero", train__steps=4)
