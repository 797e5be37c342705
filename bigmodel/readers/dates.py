"""Dates as people write them: 12/31/2024, 31.12.2024, 31 Dec 2024, 2024-12, with a time and a time zone or without.

Whether days or months come first is decided for a whole column.
"""

import dataclasses
import datetime
import re
from collections.abc import Iterable

from bigmodel.errors import UserError
from bigmodel.readers import cells

ORDERS = {"ymd": "the year first", "dmy": "the day first", "mdy": "the month first"}
MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
LATEST = 68  # two digits up to this are years of this century, as in C and Python

_DAY = r"(?P<d>\d{1,2})(?:st|nd|rd|th)?"
_MONTH = rf"(?P<m>{'|'.join(MONTH_NAMES)})[a-z]*\.?"
_YEAR = r"(?P<y>\d{4}|\d{2})"
_WEEKDAY = r"(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,?\s+)?"
FORMS = tuple(
  re.compile(form, re.IGNORECASE)
  for form in (
    r"(?P<a>\d{1,4})(?P<mark>[-/.])\s?(?P<b>\d{1,2})(?P=mark)\s?(?P<c>\d{4}|\d{2})",
    r"(?P<a>\d{4})(?P<mark>[-/.])(?P<b>\d{1,2})(?P=mark)(?P<c>\d{1,2})",
    rf"{_WEEKDAY}{_DAY}[-\s./]+{_MONTH}[-\s./,]+{_YEAR}",
    rf"{_WEEKDAY}{_MONTH}[-\s]+{_DAY},?[-\s]+(?P<y>\d{{4}})",
    rf"(?P<y>\d{{4}})[-\s]+{_MONTH}[-\s]+{_DAY}",
    rf"{_MONTH}[-\s,/]+(?P<y>\d{{4}})",
    r"(?P<y>\d{4})[-/](?P<n>\d{1,2})",
    r"(?P<n>\d{1,2})/(?P<y>\d{4})",
  )
)
TIME = re.compile(
  r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?"
  r"\s*(?P<half>[ap])?(?(half)\.?m\.?)\s*(?P<zone>Z|UTC|GMT|[+-]\d{2}:?\d{2})?",
  re.IGNORECASE,
)
TIME_BEGINS = re.compile(r"(?:[Tt]|,?\s+)(?=\d{1,2}:\d{2})")


@dataclasses.dataclass(frozen=True)
class Dates:
  """The dates, or times in UTC, of texts. `others` are the texts that are neither dates nor marks of missing values."""

  values: dict[str, datetime.datetime | None]  # by text; None: missing
  others: list[str]
  has_times: bool
  note: str  # how they are written


@dataclasses.dataclass(frozen=True)
class _Written:
  """What a text may mean, by the order of year, month and day ('' where that is clear), and its time."""

  days: dict[str, datetime.date]
  time: datetime.timedelta | None
  has_zone: bool


def is_date(text: str) -> bool:
  """Whether the text is a date in one of the forms."""
  return _parse(text) is not None


def dates(texts: Iterable[str], name: str) -> Dates:
  """The dates of the different texts of the column `name`; refuses those that may have days or months first."""
  values: dict[str, datetime.datetime | None] = {}
  written: dict[str, _Written] = {}
  others: list[str] = []
  for text in texts:
    found = None if cells.is_missing(text) else _parse(text)
    if found is not None:
      written[text] = found
    elif cells.is_missing(text):
      values[text] = None
    else:
      others.append(text)
  if not written or len(written) <= len(others):
    return Dates(values, others + list(written), False, "")
  order = _order(written, name)
  if len({found.has_zone for found in written.values()}) > 1:
    raise UserError(f"column {name!r}: some of its times have a time zone and others have none; write all in one way")
  for text, found in written.items():
    day = found.days.get("", found.days.get(order))
    try:
      assert day is not None, "the order fits all"
      values[text] = datetime.datetime(day.year, day.month, day.day) + (found.time or datetime.timedelta())
    except OverflowError:  # beyond the year 9999 in UTC
      others.append(text)
  has_times = any(found.time is not None for found in written.values())
  note = f"dates with {ORDERS[order]}, such as {next(text for text in written)!r}" if order else "dates"
  return Dates(values, others, has_times, note)


def _order(written: dict[str, _Written], name: str) -> str:
  """The order that fits most dates; '' where all are clear. Raises `UserError` where two orders fit all of them."""
  unclear = {text: found.days for text, found in written.items() if "" not in found.days}
  if not unclear:
    return ""
  counts = {order: sum(order in days for days in unclear.values()) for order in ORDERS}
  order = max(counts, key=lambda each: counts[each])
  misfit = next((text for text, days in unclear.items() if order not in days), None)
  if misfit is not None:
    fits = next(text for text, days in unclear.items() if order in days)
    raise UserError(f"column {name!r}: {fits!r} and {misfit!r} are dates of different forms; write dates as 2024-12-31")
  for other in ORDERS:
    if other == order or counts[other] < counts[order]:
      continue
    text = next((text for text, days in unclear.items() if days.get(order) != days.get(other)), None)
    if text is not None:
      raise UserError(
        f"column {name!r}: {text!r} may have {ORDERS[order]} or {ORDERS[other]}, and no date of the column settles it;"
        " write dates as 2024-12-31"
      )
  return order


def _parse(text: str) -> _Written | None:
  text = text.strip()
  if not 6 <= len(text) <= 50 or not any(letter.isdigit() for letter in text) or not text.isascii():
    return None
  begins = TIME_BEGINS.search(text)
  day, time, has_zone = text, None, False
  if begins:
    found = TIME.fullmatch(text[begins.end() :])
    time = _time(found) if found else None
    if found is None or time is None:
      return None
    day, has_zone = text[: begins.start()], bool(found["zone"])
  for form in FORMS:
    match = form.fullmatch(day)
    days = _days(match.groupdict()) if match else {}
    if days:
      return _Written(days, time, has_zone)
  return None


def _days(parts: dict[str, str | None]) -> dict[str, datetime.date]:
  """The days that the parts of a date may mean, by order."""
  a, b, c, y = parts.get("a"), parts.get("b"), parts.get("c"), parts.get("y")
  if y is not None:
    month = parts.get("n") or MONTH_NAMES.index((parts.get("m") or "")[:3].lower()) + 1
    return _valid("", y, month, parts.get("d") or 1)
  if a is None or b is None or c is None or len(a) == 3:
    return {}
  if len(a) == 4:
    return _valid("", a, b, c) if len(c) < 3 else {}
  if len(c) == 4:
    return _valid("dmy", c, b, a) | _valid("mdy", c, a, b)
  return _valid("ymd", a, b, c) | _valid("dmy", c, b, a) | _valid("mdy", c, a, b)


def _valid(order: str, year: str, month: str | int, day: str | int) -> dict[str, datetime.date]:
  full = int(year) if len(year) == 4 else int(year) + (2000 if int(year) <= LATEST else 1900)
  try:
    return {order: datetime.date(full, int(month), int(day))}
  except ValueError:
    return {}


def _time(found: re.Match[str]) -> datetime.timedelta | None:
  """The time of the day, less the offset of the time zone."""
  hour, minute, second = int(found["hour"]), int(found["minute"]), int(found["second"] or 0)
  if found["half"]:
    if not 1 <= hour <= 12:
      return None
    hour = hour % 12 + (12 if found["half"].lower() == "p" else 0)
  if hour > 23 or minute > 59 or second > 60:
    return None
  microseconds = int((found["fraction"] or "0").ljust(6, "0")[:6])
  zone, offset = found["zone"] or "", datetime.timedelta()
  if zone[:1] in "+-" and zone:
    digits = zone[1:].replace(":", "")
    offset = datetime.timedelta(hours=int(digits[:2]), minutes=int(digits[2:])) * (-1 if zone[0] == "-" else 1)
  return datetime.timedelta(hours=hour, minutes=minute, seconds=second, microseconds=microseconds) - offset
