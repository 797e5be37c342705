"""The errors that the package raises and tells apart by class.

`UserError` and `Interrupted` decide the exit code of the command (see `bigmodel/cli/main.py`). This file imports
nothing, so that every room can use it and the command can name these classes without loading a room.
"""


class UserError(Exception):
  """The input is invalid. The message is one line: what is wrong (with the value), where, and what is allowed."""


class Interrupted(Exception):  # noqa: N818
  """SIGTERM or Ctrl-C arrived. Everything is saved, and rerunning the command resumes."""


class CheckpointError(Exception):
  """A checkpoint could not be written or does not match its checksums. The message names the last good step."""


class UnfitWorker(Exception):  # noqa: N818
  """The worker's machine is at fault and the runs are not; other workers should train them."""


class JobFailed(Exception):  # noqa: N818
  """The processes of a job did not come together, or another one failed. `code` is the exit code of all of them."""

  def __init__(self, message: str, code: int):
    super().__init__(message)
    self.code = code


class RunsFailed(Exception):  # noqa: N818
  """Every run of a study or sweep diverged or failed. The message says why, and what to change."""
