"""How training learns before every step whether it must stop, and before every write whether it may still write."""

from typing import Protocol

LOST = "another worker has taken over"


class Stop(Protocol):
  """The reasons for which a run stops before its end."""

  def requested(self) -> bool:
    """Whether to save and stop. It is called before every step, so it must be fast."""
    ...

  def lost(self) -> bool:
    """Whether another worker has taken over these runs, so that this one must no longer write to their folders.

    It is called before every write, and may read from the disk.
    """
    ...


class StopRequest:
  """A stop that a signal handler, another thread or a test requests, for runs that no other worker can take over."""

  def __init__(self) -> None:
    self._requested = False

  def request(self) -> None:
    self._requested = True

  def requested(self) -> bool:
    return self._requested

  def lost(self) -> bool:
    return False
