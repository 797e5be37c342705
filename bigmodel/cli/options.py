"""Options that several verbs share."""

import argparse
import itertools
import math
from collections.abc import Callable, Sequence

LARGEST_SEED = 2**31 - 1  # programs have 32 bits for it
LONGEST_SHOWN = 60  # characters of an invalid value


def whole_number(least: int, most: int = 10**9) -> Callable[[str], int]:
  """A type for argparse: a whole number between `least` and `most`."""

  def parse_number(text: str) -> int:
    try:
      value = int(text)
    except ValueError as error:
      raise argparse.ArgumentTypeError(f"{_shown(repr(text))} is not a whole number") from error
    if value < least:
      raise argparse.ArgumentTypeError(f"{_shown(text)} is less than {least}")
    if value > most:
      raise argparse.ArgumentTypeError(f"{_shown(text)} is more than {most:,}")
    return value

  return parse_number


def positive_number(text: str) -> float:
  """A type for argparse: a finite number above 0."""
  try:
    value = float(text)
  except ValueError as error:
    raise argparse.ArgumentTypeError(f"{_shown(repr(text))} is not a number") from error
  if not 0 < value < math.inf:
    raise argparse.ArgumentTypeError(f"{_shown(text)} is not a positive number")
  return value


def seconds(text: str) -> float:
  """A type for argparse: a time above 0 for which a process can wait."""
  value = positive_number(text)
  if value > 1e6:
    raise argparse.ArgumentTypeError(f"{_shown(text)} is more than 1,000,000 seconds")
  return value


def _shown(text: str) -> str:
  return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def last_value(words: Sequence[str], option: str) -> str:
  """The value of an option in words that may not parse; '' where it has none."""
  value = ""
  for word, following in itertools.zip_longest(words, words[1:], fillvalue=""):
    if word == option:
      value = following
    elif word.startswith(f"{option}="):
      value = word.removeprefix(f"{option}=")
  return value


def add_config(parser: argparse.ArgumentParser, required: bool = True) -> None:
  parser.add_argument(
    "--config",
    required=required,
    metavar="FILE[:arg]",
    help="a config file; --config.group.field=VALUE changes a field",
  )


def add_workdir(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--workdir", required=True, metavar="DIR", help="the folder of the run or study")


def add_hosts(parser: argparse.ArgumentParser) -> None:
  """Options of verbs that train: supervision, and several processes that work as one job."""
  parser.add_argument(
    "--restarts",
    type=whole_number(0),
    default=0,
    metavar="N",
    help="restart the process when it dies, up to N times in a row without progress",
  )
  parser.add_argument(
    "--coordinator",
    default="",
    metavar="HOST:PORT",
    help="address of process 0, where the launcher does not provide it",
  )
  parser.add_argument(
    "--processes", type=whole_number(0), default=0, metavar="N", help="processes of this job, one per host"
  )
  parser.add_argument("--process", type=whole_number(0), default=-1, metavar="I", help="index of this process, from 0")
