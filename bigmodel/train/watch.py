"""What is logged and shown of a program while it trains."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bigmodel import models, optim, train
from bigmodel.train.display import Display
from bigmodel.train.member import Member
from bigmodel.train.run import write_status

FLUSH_SECONDS = 10.0  # between writes of what is known so far, or longer where they would take more than FLUSH_SHARE
FLUSH_SHARE = 0.01
AT_ONCE_SECONDS = 4.0  # of steps in one call


class Clock:
  """The seconds of a program's time that each of its members under way has had as its share."""

  def __init__(self, members: int):
    self._members, self._spent, self._since = members, 0.0, time.monotonic()

  def spent(self) -> float:
    now_ = time.monotonic()
    self._spent += (now_ - self._since) / max(1, self._members)
    self._since = now_
    return self._spent

  def go_on(self, members: int) -> None:
    """From now on with so many members; the time since the last look was somebody's own."""
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
    self.pace = math.inf  # seconds a step, as long as nothing has been read
    self.at_once = min(AT_ONCE_SECONDS, config.train.step_timeout / 4 or math.inf)
    self.every, self.evaluate_every = config.train.log_every, config.eval.every
    self.held_out = ""  # what the last evaluation found, for the display
    self.ends = {member.run.steps for member in self.members}  # steps that are logged whatever `log_every` says
    for member in self.members:  # the next stage counts its skipped steps anew
      self.ends |= {stage.stop for stage in member.stages if optim.How.of(stage.config).skips}
    self.of_row = train.batch_tokens(config) // config.train.batch_size
    self.unit = unit_of(config)
    self.flops = models.counts_of(config).exact_per_token

  def stride(self) -> int:
    """The steps that can be made at once, so that a signal or a lost lease need not wait for long."""
    return int(max(1.0, min(self.at_once / self.pace, 1e6)))

  def _evaluates(self, step: int) -> bool:
    return self.evaluate_every > 0 and step % self.evaluate_every == 0

  def evaluated(self, step: int, found: dict[Member, dict[str, Any]], seconds: float) -> None:
    """Logs what members came to on held-out data, whose evaluation took `seconds`; no step took part of these."""
    for member, facts in found.items():
      loss, metrics_ = finite(facts["loss_eval"]), facts["metrics"]
      member.metrics.add({"step": step, "loss_eval": loss, "metrics": metrics_})
    if found:
      self.held_out = f"  held-out loss {min(facts['loss_eval'] for facts in found.values()):.3f} at step {step}"
    self.read_at += seconds
    self.logged_at += seconds

  def read(
    self, step: int, count: int, told: Callable[[], dict[str, np.ndarray]], layers: list[Any] | None = None
  ) -> bool:
    """Logs if it is time; true once no member under way has a finite loss any more."""
    values = told()
    now_ = time.monotonic()
    self.pace = max(1e-9, now_ - self.read_at) / count
    if "noise_scale" in values:
      values["noise_scale"] = values["noise_scale"] * self.of_row
    under_way = [member.ended is None for member in self.members]
    before, self.read_at = self.read_at, now_
    for k in range(count):
      done = step + k + 1
      if done % self.every == 0 or done in self.ends or self._evaluates(done):
        at = before + (k + 1) * self.pace
        self._log(done, at, {name: x[:, k] for name, x in values.items()}, layers, under_way)
      if (values["diverged_at"][under_way, k] >= 0).all():
        return True
    return False

  def _log(
    self, done: int, now_: float, values: dict[str, np.ndarray], layers: list[Any] | None, under_way: list[bool]
  ) -> None:
    config = self.members[0].run.config
    seen, before = train.tokens_at(config, done), train.tokens_at(config, self.logged_step)
    speed = max(seen - before, 1) / max(now_ - self.logged_at, 1e-9)
    self.logged_step, self.logged_at = done, now_
    left = (train.tokens_at(config, self.total) - seen) / speed
    peak = speed * sum(under_way) * self.flops / self.peak
    for index, member in enumerate(self.members):
      if not under_way[index]:
        continue
      row: dict[str, Any] = {name: finite(x[index]) for name, x in values.items() if name != "diverged_at"}
      row |= {"step": done, "tokens": seen, "tokens_per_second": speed}
      if layers is not None:
        row["layers"] = jax.tree.map(finite, layers[index])
      member.metrics.add(row | {"peak_fraction": peak, "seconds_left": left})
    said = f"{speed * sum(under_way):,.0f} {self.unit}/s"
    if values.get("dropped_choices", np.zeros(1)).any():
      said += f"  {np.mean(values['dropped_choices'][under_way]):.1%} of the experts' choices dropped"
    self.display.update(done, self.total, float(np.max(values["loss"][under_way])), said + self.held_out, left)
    if now_ > self.flush_at and not self._evaluates(done):  # else more facts come to the rows of this step
      spent, began = self.clock.spent(), time.monotonic()
      for member in self.members:
        if member.ended is None:
          member.metrics.flush()
          write_status(member.run, "running", done, member.seconds + spent, left)
      ended = time.monotonic()
      self.flush_at = ended + max(FLUSH_SECONDS, (ended - began) / FLUSH_SHARE)


def unit_of(config: Any) -> str:
  return "tokens" if config.data.kind == "text" else "examples"


def finite(value: Any) -> float | None:
  return float(value) if np.isfinite(value) else None
