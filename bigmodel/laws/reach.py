"""How far a forecast lies beyond the points, as a factor of their largest or smallest scale."""

import numpy as np

from bigmodel.errors import UserError

WARNED = 1e3  # times beyond the points from which on a note warns of it
REFUSED = 1e8  # times beyond the points from which on units are likely to differ


def times(value: float, values: np.ndarray) -> float:
  """`value` over the largest of `values` if it is larger, over the smallest if it is smaller, and 1 between them."""
  low, high = float(values.min()), float(values.max())
  if value > high:
    return value / high
  return value / low if value < low else 1.0


def describe(times_: float) -> str:
  """The factor as a cell of a table: 'within', '23 x' beyond the largest scale, '23 x below' the smallest."""
  if times_ > 1 + 1e-9:
    return f"{times_:.3g} x"
  return f"{1 / times_:.3g} x below" if times_ < 1 - 1e-9 else "within"


def sentence(times_: float) -> str:
  """The factor as the end of a sentence."""
  if times_ > 1 + 1e-9:
    return f"{times_:.3g} times beyond the largest point"
  return f"{1 / times_:.3g} times below the smallest point" if times_ < 1 - 1e-9 else "within the points"


def check(
  asked: str, quantity: str, value: float, values: np.ndarray, force: bool = False, hint: str = ""
) -> list[str]:
  """Notes about a scale that lies far beyond the points; raises `UserError` if it is too far, unless forced.

  `asked` is the option with its value, `quantity` is what `values` are. `hint` says which unit would explain it.
  """
  factor = times(value, values)
  distance, end = (factor, "beyond the largest") if factor >= 1 else (1 / factor, "below the smallest")
  if distance <= WARNED:
    return []
  edge = values.max() if factor >= 1 else values.min()
  text = f"{asked} lies {distance:.2g} times {end} {quantity} of the points, {edge:.3g}"
  if distance > REFUSED and not force:
    raise UserError(f"{text}: {f'{hint};' if hint else 'are they in the same units?'} --force answers anyway")
  return [f"{text}; nothing shows that the law holds so far{f' ({hint})' if hint else ''}"]
