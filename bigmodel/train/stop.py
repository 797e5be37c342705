"""The question that training asks before every step: has it to stop, and may it still write?"""

from typing import Protocol

LOST = "another worker has taken over"


class Stop(Protocol):
  """Why a run may have to stop before its end."""

  def requested(self) -> bool:
    """Whether to save and stop. It is asked before every step, so the answer must be quick."""
    ...

  def lost(self) -> bool:
    """Whether another worker has taken over these runs, so that this one must not write to them any more.

    It is asked before every write, and the answer may take a look at the disk.
    """
    ...


class StopRequest:
  """A request to stop that a signal handler, another thread or a test makes. These runs have no other worker."""

  def __init__(self) -> None:
    self._requested = False

  def request(self) -> None:
    self._requested = True

  def requested(self) -> bool:
    return self._requested

  def lost(self) -> bool:
    return False
