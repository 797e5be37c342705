"""Groups: the runs that one worker trains together, as a plan lists them."""

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from bigmodel import record
from bigmodel.record import Record
from bigmodel.train.results import read_rungs
from bigmodel.train.run import Run


class Group(msgspec.Struct, frozen=True, omit_defaults=True):
  """Runs that one worker trains together, to their ends or to the step of a rung, `until`, where they pause."""

  run_ids: tuple[str, ...]
  expected_seconds: float
  until: int = 0  # 0: to the end

  @property
  def name(self) -> str:
    """The name of the group's lease and of its failed attempts; it differs between rungs of the same runs."""
    return self.run_ids[0] + (f"-{self.until}" if self.until else "")

  def part(self, run_ids: Sequence[str]) -> "Group":
    """Returns a group of some of the runs, with their share of the expected seconds."""
    seconds = self.expected_seconds * len(run_ids) / len(self.run_ids)
    return msgspec.structs.replace(self, run_ids=tuple(run_ids), expected_seconds=seconds)

  def not_ended(self, runs: Mapping[str, Run]) -> list[str]:
    """Returns the runs that have no record and have not paused at the rung."""
    return [run_id for run_id in self.run_ids if not self._has_ended(runs[run_id])]

  def ended(self, runs: Mapping[str, Run]) -> bool:
    """Whether each of the runs has a record or has paused at the rung."""
    return all(self._has_ended(runs[run_id]) for run_id in self.run_ids)

  def succeeded(self, runs: Mapping[str, Run]) -> bool:
    """Whether all of the runs have ended and none of them has failed."""
    return self.ended(runs) and all(one.status != "failed" for one in self._records(runs))

  def _has_ended(self, run: Run) -> bool:
    return (self.until > 0 and self.until in read_rungs(run)) or record.read(run.folder) is not None

  def _records(self, runs: Mapping[str, Run]) -> Iterator[Record]:
    for run_id in self.run_ids:
      if (ended := record.read(runs[run_id].folder)) is not None:
        yield ended
