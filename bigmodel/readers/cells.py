"""Numbers as people write them: 4M, 1,234, 1.234,5, 1 234, 77%, $5, (5), 1.2×10^9; and marks of missing values.

Whether a comma or a point separates decimals is decided for a whole column, because 1,234 alone may be either.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal

from bigmodel.errors import UserError

# Marks of missing values, in lower case; a cell may write them in any case.
MISSING = (
  *("", "na", "n/a", "n.a.", "#n/a", "#n/a n/a", "#na", "<na>", "nan", "-nan", "1.#qnan", "nat", "null", "(null)"),
  *("none", "nil", "missing", "-", "--", "---", "\u2013", "\u2014", "?", ".", "..", "\\n"),
  *("#div/0!", "#value!", "#ref!", "#num!", "#name?", "#null!"),
)
_MISSING = frozenset(MISSING)
# The power of ten of each multiple. A lower-case m or t is clear only beside other multiples.
CLEAR = {
  **{"k": 3, "K": 3, "M": 6, "MM": 6, "B": 9, "b": 9, "G": 9, "T": 12, "P": 15},
  **{"thousand": 3, "mn": 6, "mln": 6, "mio": 6, "million": 6, "millions": 6},
  **{"bn": 9, "bln": 9, "mrd": 9, "billion": 9, "billions": 9, "tn": 12, "trn": 12, "trillion": 12, "trillions": 12},
}
UNCLEAR = {"m": "million (M) or milli", "t": "trillion (T) or tonnes"}
POWERS = {**CLEAR, "m": 6, "t": 12}
UNITS = {"", "%", *POWERS}
UNSETTLED = "?"  # in place of the mark of decimals: no cell settles it, but semicolons between cells suggest a comma
# Currencies whose amounts have points for decimals.
WITH_POINTS = frozenset("$\u00a3\u00a5\u20b9\u20a9") | {
  "USD",
  "GBP",
  "JPY",
  "CNY",
  "INR",
  "AUD",
  "CAD",
  "US$",
  "A$",
  "C$",
}
CURRENCIES = "$\u20ac\u00a3\u00a5\u20b9\u20a9\u20bd\u20bf"
CODES = r"USD|EUR|GBP|CHF|JPY|CNY|INR|AUD|CAD|SEK|NOK|DKK|PLN|BRL|US\$|A\$|C\$|R\$|kr|zl"
BLANKS = str.maketrans({**dict.fromkeys("\u00a0\u202f\u2007\u2009\u2002\u2003", " "), "\u2212": "-", "\u2019": "'"})
SUPERSCRIPTS = str.maketrans("\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b\u207a", "0123456789-+")
POWER_OF_TEN = re.compile("[x\u00d7*\u00b7] *10([\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b\u207a]+)")
UNIT = r"[^\W\d_][^\W\d_/\u00b0\u00b2\u00b3]*[\u00b2\u00b3]?"
NUMBER = re.compile(
  rf"""(?P<open>\()?\s*(?P<sign>[+-])?\s*(?P<before>[{CURRENCIES}]|(?:{CODES})(?=[\s\d.,+-]))?\s*(?P<sign2>[+-])?
  (?P<body>\d[\d.,'_]*(?:\ \d[\d.,]*)*|[.,]\d+)
  (?:[eE](?P<power>[+-]?\d{{1,4}})|\s*[x\u00d7*\u00b7]\s*10\s*(?:\^|\*\*)\s*\(?(?P<power2>[+-]?\d{{1,4}})\)?)?
  \s*(?P<unit>%|{UNIT}(?:/{UNIT})?\.?|\u00b0(?:\ ?[CF])?)?
  \s*(?P<after>[{CURRENCIES}]|\b(?:{CODES})\b)?\s*(?P<close>\))?""",
  re.VERBOSE,
)


@dataclasses.dataclass(frozen=True)
class Parts:
  """A number as it is written: digits with separators, a power of ten, a unit and a currency."""

  is_negative: bool
  body: str
  power: int
  unit: str
  currency: str


@dataclasses.dataclass(frozen=True)
class Numbers:
  """The numbers of texts. `others` are the texts that are neither numbers nor marks of missing values."""

  values: dict[str, float | None]  # by text; None: missing
  others: list[str]
  notes: list[str]  # how they are written, where it is not as computers write them


def is_missing(text: str) -> bool:
  """Whether the text marks a missing value."""
  return text.strip().lower() in _MISSING


def plain_number(text: str) -> float | None:
  """The number of a text as computers write it, such as -1.5e9, or None."""
  if "_" in text or not text.isascii():
    return None
  try:
    return float(text)
  except ValueError:
    return None


def is_number(text: str) -> bool:
  """Whether the text is a number in any notation, perhaps with a multiple such as M, a currency or a percent sign."""
  parts = parse(text)
  return plain_number(text) is not None or (parts is not None and parts.unit in UNITS)


def parse(text: str) -> Parts | None:
  """The parts of a number as people write it, or None."""
  text = text.strip()
  if not text or len(text) > 60 or not any(letter.isdigit() for letter in text):
    return None
  found = NUMBER.fullmatch(POWER_OF_TEN.sub(_with_caret, text.translate(BLANKS)))
  if not found or bool(found["open"]) != bool(found["close"]) or (found["before"] and found["after"]):
    return None
  body = found["body"]
  if (found["sign"] and (found["sign2"] or found["open"])) or not body.isascii() or not _readings(body):
    return None
  unit, currency = (found["unit"] or "").rstrip("."), found["before"] or found["after"] or ""
  if unit and not currency and re.fullmatch(CODES, unit):
    unit, currency = "", unit
  if len(unit) > 1 and unit.lower() in CLEAR and unit not in CLEAR:
    unit = unit.lower()
  is_negative = bool(found["open"]) or "-" in (found["sign"], found["sign2"])
  return Parts(is_negative, body, int(found["power"] or found["power2"] or 0), unit, currency)


def _with_caret(found: re.Match[str]) -> str:
  return "x10^" + found[1].translate(SUPERSCRIPTS)


def _readings(body: str) -> dict[str, float]:
  """What the digits may be, by the mark that separates decimals."""
  found = {point: _number(body, point) for point in ".,"}
  return {point: number for point, number in found.items() if number is not None}


def _number(body: str, point: str) -> float | None:
  """The number of digits with separators, where `point` separates the decimals; None where that cannot be."""
  before, _, rest = body.rpartition(point)
  whole, rest = (before, rest) if point in body else (body, "")
  if point in whole or not re.fullmatch(r"[\d_]*", rest):
    return None
  groups = re.split(r"[.,' ]", whole.replace("_", ""))
  if len(groups) > 1:
    sizes = [len(group) for group in groups]
    if len({letter for letter in whole if letter in ".,' "}) > 1 or groups[0].startswith("0"):
      return None
    western = 1 <= sizes[0] <= 3 and all(size == 3 for size in sizes[1:])
    indian = 1 <= sizes[0] <= 2 and all(size == 2 for size in sizes[1:-1]) and sizes[-1] == 3
    if not western and not indian:
      return None
  digits, rest = "".join(groups), rest.replace("_", "")
  return float(f"{digits or 0}.{rest or 0}") if digits or rest else None


def _decimal_marks(bodies: Iterable[str]) -> set[str]:
  """The marks that separate decimals beyond doubt in some of the numbers: '.', ',', both or none."""
  marks: set[str] = set()
  for body in bodies:
    readings = _readings(body) if "." in body or "," in body else {}
    if len(readings) == 1:
      marks |= readings.keys()
  return marks


def file_decimal(texts: Iterable[str]) -> str:
  """The mark of decimals in a file by some of its cells: '.' or ',', or '' where they do not settle it."""
  bodies = []
  for text in texts:
    parts = parse(text) if "." in text or "," in text else None
    if parts is not None:  # before a power of ten there are no thousands
      bodies.append(f"0{parts.body}" if parts.power and parts.body[0].isdigit() else parts.body)
  marks = _decimal_marks(bodies)
  return marks.pop() if len(marks) == 1 else ""


def numbers(texts: Iterable[str], name: str, file_mark: str, leave_out_unit: bool) -> Numbers:
  """The numbers of the different texts of the column `name`.

  `file_mark` is what `file_decimal` found, or `UNSETTLED`. A unit that all texts share, such as kg, is left out if
  `leave_out_unit`, and otherwise makes them no numbers. Raises `UserError` where the texts can be read in two ways.
  """
  found = Numbers({}, [], [])
  written: dict[str, Parts] = {}
  for text in texts:
    plain, parts = plain_number(text), None
    if plain is None or (file_mark == "," and "." in text):
      parts = parse(text)
    if is_missing(text) or (plain is not None and math.isnan(plain)):
      found.values[text] = None
    elif parts is not None:
      written[text] = parts
    elif plain is not None:
      found.values[text] = plain
    else:
      found.others.append(text)
  return _with_written(found, written, name, file_mark, leave_out_unit) if written else found


def _with_written(
  found: Numbers, written: dict[str, Parts], name: str, file_mark: str, leave_out_unit: bool
) -> Numbers:
  """The numbers of a column with those that are not written as computers write them, `written`."""
  values, others = dict(found.values), list(found.others)
  plain = [text for text, value in values.items() if value]  # neither missing nor 0
  units = {parts.unit for parts in written.values()}
  if units - UNITS and not (leave_out_unit and not plain and len(units) == 1):
    others += [text for text, parts in written.items() if parts.unit not in UNITS]
    written = {text: parts for text, parts in written.items() if parts.unit in UNITS}
  if not written or len(written) + len(plain) <= len(others):  # a column of texts, some of which look like numbers
    return Numbers(values, others + list(written), [])
  _refuse_mixtures(written, plain, name)
  if len(others) < 0.1 * (
    len(written) + len(plain)
  ):  # otherwise the texts are perhaps codes, such as 0023, 002b and 002f
    _refuse_much_smaller(written, plain, name)
  point = _point(written, plain, name, file_mark)
  for text, parts in written.items():
    number = _value(parts, point)
    if number is None:
      others.append(text)
    else:
      values[text] = number
  return Numbers(values, others, _notes(written, point))


def _value(parts: Parts, point: str) -> float | None:
  """The number, where `point` separates decimals."""
  number = _number(parts.body, point)
  if number is None:
    return None
  power = parts.power + (-2 if parts.unit == "%" else POWERS.get(parts.unit, 0))
  size = float(Decimal(repr(number)).scaleb(power))  # exact, so that .07B is 7e7
  return -size if parts.is_negative else size


def _refuse_mixtures(written: dict[str, Parts], plain: Sequence[str], name: str) -> None:
  """Refuses columns that mix percents with other numbers, or currencies, and multiples that are not clear."""
  percents = [text for text, parts in written.items() if parts.unit == "%"]
  others = [*plain, *(text for text, parts in written.items() if parts.unit != "%" and _number(parts.body, ".") != 0)]
  if percents and others:
    raise UserError(f"column {name!r}: has percents ({percents[0]!r}) beside {others[0]!r}; write all in one way")
  currencies = sorted({parts.currency for parts in written.values()} - {""})
  if len(currencies) > 1:
    raise UserError(f"column {name!r}: has several currencies ({', '.join(currencies)}); convert them to one")
  if any(parts.unit in CLEAR for parts in written.values()):
    return
  for text, parts in written.items():
    if parts.unit in UNCLEAR:
      raise UserError(f"column {name!r}: {text!r} may be {UNCLEAR[parts.unit]}; write the number in full")


def _refuse_much_smaller(written: dict[str, Parts], plain: Sequence[str], name: str) -> None:
  """Refuses numbers such as 4 beside 8M, which perhaps lack their multiple."""
  multiples = {text: POWERS[parts.unit] + parts.power for text, parts in written.items() if parts.unit in POWERS}
  if not multiples:
    return
  multiple = min(multiples, key=lambda text: multiples[text])
  for text in (*plain, *written):
    parts = parse(text)
    if parts is None or parts.unit in POWERS:
      continue
    number = _value(parts, ".")
    if number and abs(number) < 10.0 ** (multiples[multiple] - 3):
      raise UserError(f"column {name!r}: has {text!r} beside {multiple!r}; write all with their multiple, or in full")


def _point(written: dict[str, Parts], plain: Sequence[str], name: str, file_mark: str) -> str:
  """The mark of decimals in a column: by its numbers, or else by those of the file."""
  marks = _decimal_marks(parts.body for parts in written.values())
  if any("." in text for text in plain):
    marks.add(".")
  if len(marks) > 1:
    comma = next(text for text, parts in written.items() if _decimal_marks([parts.body]) == {","})
    raise UserError(f"column {name!r}: has a decimal comma ({comma!r}) beside decimal points; write one kind")
  if marks:
    return marks.pop()
  if file_mark in (".", ","):
    return file_mark
  doubtful = {t: p for t, p in written.items() if "," in p.body or ("." in p.body and p.currency)}
  if guess := _probable_point(list(doubtful.values()), file_mark):
    return guess
  for text, parts in doubtful.items():
    small, large = sorted(_readings(parts.body).values())
    raise UserError(
      f"column {name!r}: {text!r} may be {large:g} or {small:g}, and no other number of the file settles it; write"
      " decimal points and no separators of thousands"
    )
  return "."


def _probable_point(written: Sequence[Parts], file_mark: str) -> str:
  """The probable mark of decimals of numbers such as 1,234, or '' where a guess could be wrong."""
  if not written or not all("," in parts.body for parts in written):
    return ""
  currencies = {parts.currency for parts in written}
  large = all(len(parts.body.split(",")[0]) == 3 for parts in written)
  if "" not in currencies:  # amounts of money rarely have three decimals, and even more rarely large ones
    return "." if large or (file_mark != UNSETTLED and currencies <= WITH_POINTS) else ""
  are_thousands = large or all(parts.body.endswith(",000") for parts in written)
  return "," if file_mark == UNSETTLED and not are_thousands else ""


def _notes(written: dict[str, Parts], point: str) -> list[str]:
  """How the numbers are written, in a few words each."""
  bodies = "".join(parts.body for parts in written.values())
  notes = ["decimal commas"] if point == "," and "," in bodies else []
  groups = {"." if point == "," else ",": "points" if point == "," else "commas", " ": "blanks", "'": "apostrophes"}
  marks = [name for mark, name in groups.items() if mark in bodies]
  if marks:
    notes.append(f"{' and '.join(marks)} between thousands")
  units = sorted({parts.unit for parts in written.values()} - {""})
  notes += [f"{unit} is 1e{POWERS[unit]}" for unit in units if unit in POWERS]
  notes += ["77% is .77"] if "%" in units else []
  left_out = sorted({parts.currency for parts in written.values()} - {""}) + [u for u in units if u not in UNITS]
  if left_out:
    notes.append(f"{', '.join(left_out)} left out")
  if any(text.strip().startswith("(") for text in written):
    notes.append("numbers in parentheses are negative")
  return notes
