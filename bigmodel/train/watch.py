"""Logs and shows the metrics of a program while it trains."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from numpy.typing import ArrayLike

from bigmodel import models, optim, train
from bigmodel.config import Config
from bigmodel.train.display import Display
from bigmodel.train.evaluate import HeldOut
from bigmodel.train.member import Member
from bigmodel.train.run import write_status
from bigmodel.train.schedule import Dispatched
from bigmodel.train.statistics import LayerStatistics

FLUSH_SECONDS = 10.0  # between writes of metrics; more if writing would take over FLUSH_SHARE of the time
FLUSH_SHARE = 0.01
AT_ONCE_SECONDS = 4.0  # that the steps of one call take, at most


class Clock:
  """Each member's share of a program's time, which is divided equally among the members under way."""

  def __init__(self, members: int):
    self._members, self._spent, self._since = members, 0.0, time.monotonic()

  def spent(self) -> float:
    now = time.monotonic()
    self._spent += (now - self._since) / max(1, self._members)
    self._since = now
    return self._spent

  def restart(self, members: int) -> None:
    """Divides the time from now on among this number of members; the time since the last reading is not counted."""
    self._members, self._since = members, time.monotonic()


@dataclasses.dataclass
class Watch:
  """Reads the metrics of steps while the next ones compute."""

  members: list[Member]
  logged_step: int
  total: int
  display: Display
  clock: Clock
  peak: float  # FLOP/s that the devices of the program's mesh can reach together

  def __post_init__(self) -> None:
    config = self.members[0].run.config
    self.logged_at = self.read_at = time.monotonic()
    self.flush_at = self.read_at + FLUSH_SECONDS
    self.pace = math.inf  # seconds per step; unknown until metrics have been read
    self.at_once = min(AT_ONCE_SECONDS, config.train.step_timeout / 4 or math.inf)
    self.every, self.evaluate_every = config.train.log_every, config.eval.every
    self.held_out = ""  # text about the last evaluation, for the display
    self.ends = {
      member.run.steps for member in self.members
    }  # steps that are logged in addition to every `log_every`-th
    for member in self.members:  # the next stage resets the count of skipped steps
      self.ends |= {stage.stop for stage in member.stages if optim.How.of(stage.config).skips}
    self.tokens_per_row = train.batch_tokens(config) // config.train.batch_size
    self.unit = unit_of(config)
    self.flops = models.counts_of(config).exact_per_token

  def stride(self) -> int:
    """The most steps that one call may make, so that it soon notices a signal or a lost lease."""
    return int(max(1.0, min(self.at_once / self.pace, 1e6)))

  def _evaluates(self, step: int) -> bool:
    return self.evaluate_every > 0 and step % self.evaluate_every == 0

  def evaluated(self, step: int, results: Mapping[Member, HeldOut], seconds: float) -> None:
    """Logs evaluations on held-out data; their `seconds` are excluded from the time of steps."""
    for member, result in results.items():
      member.metrics.add(step, {"loss_eval": finite(result.loss), "metrics": result.metrics})
    if results:
      self.held_out = f"  held-out loss {min(result.loss for result in results.values()):.3f} at step {step}"
    self.read_at += seconds
    self.logged_at += seconds

  def read(self, dispatched: Dispatched) -> bool:
    """Waits for dispatched steps and logs those that are due; returns whether every member under way has diverged."""
    values, count = dispatched.metrics(), dispatched.count
    now = time.monotonic()
    self.pace = max(1e-9, now - self.read_at) / count
    if "noise_scale" in values:
      values["noise_scale"] = values["noise_scale"] * self.tokens_per_row
    under_way = [member.ended is None for member in self.members]
    before, self.read_at = self.read_at, now
    for k in range(count):
      done = dispatched.first + k + 1
      if done % self.every == 0 or done in self.ends or self._evaluates(done):
        at = before + (k + 1) * self.pace
        self._log(done, at, {name: x[:, k] for name, x in values.items()}, dispatched.layers)
      if (values["diverged_at"][under_way, k] >= 0).all():
        return True
    return False

  def _log(self, done: int, now: float, values: dict[str, np.ndarray], layers: list[LayerStatistics] | None) -> None:
    """Logs the metrics [members] of one step in the members' rows, on the display and in the status files."""
    config = self.members[0].run.config
    under_way = [member.ended is None for member in self.members]
    tokens, before = train.tokens_at(config, done), train.tokens_at(config, self.logged_step)
    speed = max(tokens - before, 1) / max(now - self.logged_at, 1e-9)
    self.logged_step, self.logged_at = done, now
    left = (train.tokens_at(config, self.total) - tokens) / speed
    shared = {
      "tokens": tokens,
      "tokens_per_second": speed,
      "peak_fraction": speed * sum(under_way) * self.flops / self.peak,
      "seconds_left": left,
    }
    for index, member in enumerate(self.members):
      if under_way[index]:
        row = {name: finite(x[index]) for name, x in values.items() if name != "diverged_at"}
        layer_values = {} if layers is None else {"layers": jax.tree.map(finite, layers[index])}
        member.metrics.add(done, row | shared | layer_values)
    text = f"{speed * sum(under_way):,.0f} {self.unit}/s"
    if values.get("dropped_choices", np.zeros(1)).any():
      text += f"  {np.mean(values['dropped_choices'][under_way]):.1%} of the experts' choices dropped"
    self.display.update(done, self.total, float(np.max(values["loss"][under_way])), text + self.held_out, left)
    if now > self.flush_at and not self._evaluates(done):  # an evaluation still adds to the rows of its step
      self._flush(done, left)

  def _flush(self, done: int, left: float) -> None:
    """Writes the unwritten rows and the status of every member."""
    spent, began = self.clock.spent(), time.monotonic()
    for member in self.members:
      if member.ended is None:
        member.metrics.flush()
        write_status(member.run, "running", done, member.seconds + spent, left)
    ended = time.monotonic()
    self.flush_at = ended + max(FLUSH_SECONDS, (ended - began) / FLUSH_SHARE)


def unit_of(config: Config) -> str:
  return "tokens" if config.data.kind == "text" else "examples"


def finite(value: ArrayLike) -> float | None:
  """A number for JSON, which has neither NaN nor infinity."""
  return float(np.asarray(value)) if np.isfinite(value) else None


def title(members: Sequence[Member]) -> str:
  """The display's name for a program: 'decoder of 34k, 4.1M tokens', with the number of members."""
  config = members[0].run.config
  tokens = train.tokens_at(config, members[0].run.steps)
  many = f"{len(members)} x " if len(members) > 1 else ""
  size = models.counts_of(config).params_total
  return f"{many}{config.model.family} of {_short(size)}, {_short(tokens)} {unit_of(config)}"


def _short(number: int) -> str:
  return f"{number / 1e6:.3g}M" if number >= 1e6 else f"{number / 1e3:.3g}k"
