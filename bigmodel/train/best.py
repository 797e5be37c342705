"""The best checkpoint of a run by its held-out loss: in `best/`, a folder that verbs and `train.init_from` accept."""

import math
from collections.abc import Callable

from bigmodel.config import flatten
from bigmodel.files import read_json, write_json
from bigmodel.parallel import hosts
from bigmodel.train.checkpoint import Checkpoints
from bigmodel.train.run import Run
from bigmodel.train.step import State


class Best:
  """Keeps the state with the lowest held-out loss so far; `best.json` has its step and loss."""

  def __init__(self, run: Run, lost: Callable[[], bool]):
    """`lost` returns whether another worker has taken over the run; nothing is committed from then on."""
    self._config, self._folder = run.config, run.folder / "best"
    self._store = Checkpoints(self._folder / "checkpoints", keep=1, lost=lost)
    self._loss = math.inf

  def resume(self, step: int) -> None:
    """Drops evaluations after `step`, from which the run resumes.

    If the checkpoint that best.json names is gone, a better one of a later step had replaced it. The resumed run
    reaches that step again.
    """
    self._store.drop_after(step)
    self._loss = hosts.first(self._read)

  def _read(self) -> float:
    path = self._folder / "best.json"
    best = read_json(path) if path.exists() else {"step": -1}
    return best["loss_eval"] if best["step"] in self._store.steps() else math.inf

  def offer(self, step: int, state: State, loss: float) -> None:
    """Saves the state of a step if its held-out loss is the lowest so far."""
    if not loss < self._loss:
      return
    self._loss = loss
    self._store.save(step, state)
    self._store.wait()
    hosts.first(lambda: write_json(self._folder / "config.json", flatten(self._config)))
    hosts.first(lambda: write_json(self._folder / "best.json", {"step": step, "loss_eval": loss}))

  def close(self) -> None:
    self._store.close()
