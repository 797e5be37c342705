"""The progress that training shows: bars on a terminal, a line every few seconds elsewhere."""

import functools
import time
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

QUIET_SECONDS = 10.0


def plain_console(
  stderr: bool = False,
  quiet: bool = False,
  highlight: bool = True,
  file: IO[str] | None = None,
  width: int | None = None,
) -> Console:
  """A console that reads no markup and no emoji codes into text.

  Paths, config values and error messages may hold brackets, such as `bigmodel[tpu]`, which rich would otherwise
  take for styles and leave out.
  """
  return Console(markup=False, emoji=False, stderr=stderr, quiet=quiet, highlight=highlight, file=file, width=width)


def duration(seconds: float) -> str:
  """'42 s', '3 min 5 s', '2 h 10 min'."""
  seconds = max(0, round(seconds))
  if seconds < 60:
    return f"{seconds} s"
  if seconds < 3600:
    return f"{seconds // 60} min {seconds % 60} s"
  return f"{seconds // 3600} h {seconds % 3600 // 60} min"


class Display:
  """Progress on standard error. `expected` seconds of all the work give the time left."""

  def __init__(self, expected: float = 0.0, quiet: bool = False):
    self.console = plain_console(stderr=True, quiet=quiet, highlight=False)
    self._live = self.console.is_terminal and not quiet
    plain = functools.partial(TextColumn, markup=False)
    columns = (plain("{task.description}"), BarColumn(), plain("{task.fields[note]}"), TimeElapsedColumn())
    self._progress = Progress(*columns, console=self.console, transient=True)
    self._expected = expected
    self._done = 0.0
    self._now: tuple[str, float] = ("", 0.0)
    self._last = time.monotonic()
    self._tasks: dict[str, TaskID] = {}

  def __enter__(self) -> "Display":
    if self._live:
      self._progress.start()
      if self._expected:
        self._tasks["all"] = self._progress.add_task("all runs", total=self._expected, note="")
    return self

  def __exit__(self, *_: object) -> None:
    if self._live:
      self._progress.stop()

  def say(self, text: str) -> None:
    self.console.print(text, soft_wrap=True)

  def begin(self, title: str, total: int, expected: float = 0.0) -> None:
    self._now = (title, expected)
    if self._live:
      self._tasks["now"] = self._progress.add_task(title, total=total, note="compiling")

  def update(self, step: int, total: int, loss: float, speed: str, seconds_left: float) -> None:
    title, expected = self._now
    done = self._done + expected * step / max(total, 1)
    left = seconds_left + max(0.0, self._expected - self._done - expected)
    note = f"loss {loss:.3f}  {speed}  {duration(left)} left"
    if self._live:
      self._progress.update(self._tasks["now"], completed=step, note=note)
      if "all" in self._tasks:
        self._progress.update(self._tasks["all"], completed=done, note=f"{duration(left)} left")
    elif time.monotonic() - self._last > QUIET_SECONDS:
      self._last = time.monotonic()
      self.say(f"{title}  step {step}/{total}  {note}")

  def end(self, text: str = "") -> None:
    self._done += self._now[1]
    if self._live and "now" in self._tasks:
      self._progress.remove_task(self._tasks.pop("now"))
    if text:
      self.say(text)
