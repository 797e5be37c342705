"""Messages that name options of the command, in terms of the arguments of `bigmodel.fit` and its like."""

import contextlib
import re
from collections.abc import Iterator

from bigmodel.errors import UserError

QUANTITIES = {"n": "N", "d": "D", "c": "C", "x": "x", "curve": "curve", "step": "step", "lr": "lr"}
VALUE = r"('[^']*'|[^\s;,)]+)"  # of an option, in quotes where a shell needs them


def in_python(message: str) -> str:
  """The message with `columns={'N': 'params_M*1e6'}` for `--n=params_M*1e6`, `loss='ce'` for `--loss=ce`, and so on."""
  names = "|".join(QUANTITIES)

  def quantity(match: re.Match[str]) -> str:
    name = QUANTITIES.get(match[1], match[1])
    return f"columns={{{name!r}: {match[2].strip(chr(39))!r}}}" if match[2] else f"columns[{name!r}]"

  text = re.sub(r"--skip-bad-rows leaves them out", "leave them out", message)
  text = re.sub(rf"--({names})(?![\w-])(?:={VALUE})?", quantity, text)
  text = re.sub(rf"--column (\w+)(?:={VALUE})?", quantity, text)
  text = re.sub(rf"--(loss|stderr|group|law)={VALUE}", lambda match: f"{match[1]}={match[2].strip(chr(39))!r}", text)
  return re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda match: match[1].replace("-", "_"), text)


@contextlib.contextmanager
def named() -> Iterator[None]:
  """Raises errors of the block with the arguments of Python's functions in place of the command's options."""
  try:
    yield
  except UserError as error:
    raise UserError(in_python(str(error))) from error.__cause__
