"""Units of columns: multiples such as params_M*1e6, units that names of columns state, and values that make no sense.

Fits of exponents do not depend on units. Numbers in FLOPs, parameters or tokens do: a budget of 1e20 FLOPs beside sizes
in millions gives an answer that is wrong by orders of magnitude.
"""

import dataclasses
import math
import re
import shlex
from collections.abc import Collection, Mapping

import numpy as np

from bigmodel.errors import UserError

ODD_RATIO = 30  # of C to 6 N D, beyond which units are in doubt: other conventions and experts stay below it
FEWEST = {"N": 1e3, "D": 1e3, "C": 1e6}  # if the largest value of a column is less, it is hardly a plain number
MOST = {"N": 1e13, "D": 1e15, "C": 1e30, "x": 1e18}  # a stated unit that leads to more is not that of the values
LOGS = 120  # logarithms of scales are less
DAY = 86400.0

_PREFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21, "y": 1e24}
_LONG_PREFIXES = {"kilo": 1e3, "mega": 1e6, "giga": 1e9, "tera": 1e12, "peta": 1e15, "exa": 1e18, "zetta": 1e21}
_WORDS = {
  1e3: ("thousand", "thousands", "tausend", "thsd", "千"),
  1e4: ("万",),
  1e6: ("million", "millions", "mio", "mln", "mn", "mil", "millionen", "millones", "milioni", "mb", "百万"),
  1e8: ("亿", "億"),
  1e9: ("billion", "billions", "bn", "bln", "bil", "mrd", "milliarden", "milliards", "miliardi", "gb", "十亿"),
  1e12: ("trillion", "trillions", "tn", "trn", "tln", "tril", "tb"),
}
_FACTORS = {word: factor for factor, words in _WORDS.items() for word in words}
_COUNTED = r"(?:params?|parameters?|tok|toks|tokens?|examples?|images?|samples?)"
_LOGARITHMS = {"log", "ln", "lg", "log10", "log2", "logarithm"}
_EXAMPLES = {
  f"{word}{ending}"
  for word in ("example", "image", "img", "sample", "sequence", "seq", "document", "doc", "step", "iteration", "iter")
  for ending in ("", "s")
} | {"frames", "episodes", "epochs", "graphs", "molecules", "clips", "batches"}
_TIMES = {"hours", "hour", "hrs", "seconds", "secs", "minutes", "days", "gpuhours", "usd", "cost", "kwh"}


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of a file and how its values are converted: `offset + factor * value`."""

  name: str
  factor: float = 1.0
  offset: float = 0.0
  converted: bool = False  # whether the user wrote a conversion, even one by 1

  def values(self, values: np.ndarray) -> np.ndarray:
    return self.offset + self.factor * values if self.converted else values


def parse(text: str, names: Collection[str], flag: str = "") -> Column:
  """The column that `text` names: COLUMN, COLUMN*FACTOR, COLUMN/NUMBER, or 1-COLUMN.

  A name of a column is never taken apart.
  """
  if text in names:
    return Column(text)
  if match := re.fullmatch(r"(.+?)\s*([*/])\s*(?:10(?:\^|\*\*)\s*([+-]?\d+)|([^*/\s]+))\s*", text):
    name, operation, power, number = match.groups()
    try:
      factor = float(f"1e{power}" if power else number)
    except ValueError:
      return Column(text)
    if operation == "/" and factor:
      factor = 1 / factor
    if not math.isfinite(factor) or factor == 0:
      raise UserError(f"{flag}{': ' if flag else ''}the factor of {text!r} is not a finite number other than 0")
    return Column(name.strip(), factor, converted=True)
  match = re.fullmatch(r"\s*(1|1\.0|100)\s*-\s*(.+?)\s*", text)
  return Column(match[2], -1.0, float(match[1]), True) if match and match[2] in names else Column(text)


@dataclasses.dataclass(frozen=True)
class Doubt:
  """Why the unit of a column is in doubt, and the option that would convert it."""

  quantity: str
  text: str
  advice: str = ""
  breaks_fits: bool = False  # even exponents are wrong, as they are of logarithms

  def __str__(self) -> str:
    return f"{self.text}{f'; {self.advice}' if self.advice else ''}"


def stated(name: str) -> float | None:
  """The factor that the name of a column states, such as 1e6 of params_M; None without one."""
  squeezed = re.sub(r"[^a-z]", "", name.lower())
  if match := re.search(r"(kilo|mega|giga|tera|peta|exa|zetta|[kmgtpez])(?:f|fs|flops?|flopss)days?$", squeezed):
    return _prefix(match[1]) * DAY
  power = re.search(r"(?<![A-Za-z0-9.])[x×*/]?\s*(?:1[eE]\+?|10\s*(?:\^|\*\*)\s*|[eE](?=\d\d))(\d{1,2})(?!\w)", name)
  if power:
    return float(f"1e{power[1]}")
  words = _words(name)
  for word in words:
    low = word.lower()
    if low in _FACTORS:
      return _FACTORS[low]
    if match := re.fullmatch(rf"(kilo|mega|giga|tera|[kmbgt]){_COUNTED}", low):
      return _prefix(match[1])
    if match := re.fullmatch(r"(kilo|mega|giga|tera|peta|exa|zetta|[kmgtpezy])(?:flops?|f|fs)", low):
      return _prefix(match[1])
  return _letter(name, words)


def _prefix(text: str) -> float:
  return _LONG_PREFIXES.get(text) or _PREFIXES[text]


def _words(name: str) -> list[str]:
  """The words of a column's name, whole and taken apart at capitals."""
  whole = re.findall(r"[^\W_]+", name)
  parts = [part for word in whole for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\x00-\x7f]+|\d+", word)]
  return list(dict.fromkeys(whole + parts))


def _letter(name: str, words: list[str]) -> float | None:
  """The factor of a single letter: a capital beside other words, one in brackets, or the last after what is counted."""
  if bracketed := re.search(r"[(\[]\s*(?:in\s+)?([kmbgtKMBGT])s?\s*[)\]]", name):
    return _PREFIXES[bracketed[1].lower()]
  letters = [word for word in words if re.fullmatch(r"[KMBGT]", word)]
  if letters and len(words) > 1:
    return _PREFIXES[letters[-1].lower()]
  last = re.search(rf"(?:^|[\W_]){_COUNTED}[\W_]+([kmbgt])$", name.lower())
  return _PREFIXES[last[1]] if last else None


def is_logarithm(name: str) -> bool:
  """Whether the name of a column states a logarithm, such as log10_params or logN."""
  whole = [word.lower() for word in re.findall(r"[^\W_]+", name)]
  starts = re.match(r"(?:log(?:10|2)?|ln)(?:[A-Z]|$|params|tokens|flops|size|compute)", name)
  return bool(starts) or any(word in _LOGARITHMS for word in whole)


def doubts(columns: Mapping[str, str], values: Mapping[str, np.ndarray], names: Collection[str]) -> list[Doubt]:
  """What makes the units of the columns of N, D, C and x doubtful.

  `columns` has what the user wrote for each quantity, `values` the values after conversion, and `names` the columns of
  the file. A conversion that the user wrote is taken as the right one.
  """
  found: list[Doubt] = []
  for quantity, text in columns.items():
    if quantity in MOST:
      column = parse(text, names)
      found += _doubt(quantity, column, values[quantity]) if not column.converted else []
  if {"N", "D"} == {doubt.quantity for doubt in found} and all(_in_range_of_logs(values[name]) for name in "ND"):
    found = [dataclasses.replace(doubt, text=f"{doubt.text} (logarithms?)", breaks_fits=True) for doubt in found]
  if {"N", "D"} <= set(columns):
    found += _swapped(columns["N"], columns["D"])
  if {"N", "D", "C"} <= set(columns):
    found += _compute(columns, values, found)
  return found


def _doubt(quantity: str, column: Column, values: np.ndarray) -> list[Doubt]:
  name, low, high = column.name, float(values.min()), float(values.max())
  here = f"column {name!r} ({low:.4g} to {high:.4g})"
  option = f"--{quantity.lower()}"
  if is_logarithm(name) and high < LOGS:
    text = f"{here} holds logarithms, by its name"
    return [Doubt(quantity, text, f"store plain numbers, or {_advice(option, name, 1)} if they are plain", True)]
  factor = stated(name)
  if factor is not None:
    if high * factor <= MOST[quantity]:
      return [Doubt(quantity, f"{here} is in units of {short(factor)}, by its name", _advice(option, name, factor))]
    return []
  if quantity == "C" and set(map(str.lower, _words(name))) & _TIMES:
    return [Doubt(quantity, f"{here} is not in FLOPs, by its name", f"{option}=COLUMN*FLOPS_PER_UNIT converts it")]
  if high < FEWEST.get(quantity, 0) or (quantity in ("N", "D") and low < 1):
    counted = {"N": "parameters", "D": "tokens", "C": "FLOPs"}[quantity]
    guess = {"N": 1e6, "D": 1e9, "C": 1e18}[quantity]
    text = f"{here} is too small for a number of {counted}"
    plain = f"{_advice(option, name, 1)} if they are plain"
    return [Doubt(quantity, text, f"if it is in units of {short(guess)}, {_advice(option, name, guess)}; {plain}")]
  return []


def short(number: float) -> str:
  """A number as people write it: 1e6, 8.64e19, 1."""
  mantissa, exponent = f"{number:.2e}".split("e")
  return f"{float(mantissa):g}{f'e{int(exponent)}' if int(exponent) else ''}"


def _advice(option: str, name: str, factor: float) -> str:
  """The option that converts a column, quoted where a shell needs it: --n=params_M*1e6."""
  text = f"{name}*{short(factor)}"
  is_plain = re.fullmatch(r"[\w*.+-]+", text)
  return f"{option}={text if is_plain else shlex.quote(text)}"


def _in_range_of_logs(values: np.ndarray) -> bool:
  """Whether values could be logarithms of numbers of parameters or tokens."""
  return bool(values.min() >= 3 and values.max() <= 40 and values.max() < 4 * values.min())


def _swapped(n: str, d: str) -> list[Doubt]:
  are = [{part.lower() for part in _words(text)} for text in (n, d)]
  tokens, params = {"token", "tokens", "toks"}, {"param", "params", "parameter", "parameters"}
  if are[0] & tokens and are[1] & params and not (are[0] & params or are[1] & tokens):
    text = f"--n={n} names tokens and --d={d} parameters"
    return [Doubt("N", text, "N is the parameters and D the tokens: exchange them", True)]
  return []


def _compute(columns: Mapping[str, str], values: Mapping[str, np.ndarray], found: list[Doubt]) -> list[Doubt]:
  """A doubt if C is far from 6 N D, unless D counts examples of many tokens, or N experts that are not all active."""
  ratio = float(np.exp(np.median(np.log(values["C"]) - np.log(6 * values["N"]) - np.log(values["D"]))))
  if 1 / ODD_RATIO <= ratio <= ODD_RATIO:
    return []
  many_tokens = {word.lower() for word in _words(columns["D"])} & _EXAMPLES
  experts = {word.lower() for word in _words(columns["N"])} & {"total", "all", "experts", "moe", "sparse"}
  if (many_tokens and 1 < ratio < 1e6) or (experts and 1e-3 < ratio < 1):
    return []
  times = f"{ratio:.3g}" if 0.01 <= ratio < 1e4 else short(ratio)
  return [Doubt("C", f"C is {times} times 6 N D in the median", "" if found else _likely(columns, ratio))]


def _likely(columns: Mapping[str, str], ratio: float) -> str:
  """The unit that would explain the ratio of C to 6 N D."""
  units = {1e3: "thousands", 1e6: "millions", 1e9: "billions"}
  if ratio < 1:
    power = 10.0 ** (3 * round(-math.log10(ratio) / 3))
    experts = f"; or does {columns['N']} count all experts, most of them inactive? leave out --c"
    experts = experts if ratio > 1e-3 else ""
    return f"is {columns['C']} in units of {short(power)}? {_advice('--c', columns['C'], power)}{experts}"
  for factor, word in units.items():
    if abs(math.log10(ratio / factor)) < 1.5:
      return (
        f"is {columns['N']} in {word} ({_advice('--n', columns['N'], factor)}),"
        f" or {columns['D']} ({_advice('--d', columns['D'], factor)})?"
      )
  return (
    f"are {columns['N']} in millions and {columns['D']} in billions?"
    f" {_advice('--n', columns['N'], 1e6)} {_advice('--d', columns['D'], 1e9)}"
  )
