"""The words of a command become the arguments of a verb; invalid words raise `UserError`."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn, Protocol

from bigmodel.cli.console import Json, Output
from bigmodel.errors import UserError


class Verb(Protocol):
  """A file in `verbs/`. The first line of its docstring is its help in `bigmodel --help`."""

  __doc__: str | None

  @property
  def EXAMPLES(self) -> Sequence[str]:
    """Whole commands, shown at the end of the verb's --help."""
    ...

  def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

  def run(self, arguments: argparse.Namespace, output: Output) -> Json:
    """Does the work with one call into a room; returns the document of --json."""
    ...


class Parser(argparse.ArgumentParser):
  """Raises `UserError` for invalid words, where argparse prints its usage and exits."""

  def error(self, message: str) -> NoReturn:
    raise UserError(message.removeprefix("argument "))

  def options(self) -> Iterator[str]:
    """The names of all options, such as '--config'."""
    for action in self._actions:
      yield from action.option_strings

  def passes_words_on(self) -> bool:
    """Whether the last words belong to another command."""
    return any(action.nargs == argparse.REMAINDER for action in self._actions)


def parser_of(name: str, verb: Verb) -> Parser:
  """The parser of a verb; its help ends with the verb's examples."""
  examples = "\n".join(f"  {example}" for example in verb.EXAMPLES)
  parser = Parser(
    f"bigmodel {name}",
    description=verb.__doc__,
    epilog=f"examples:\n{examples}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  verb.add_arguments(parser)
  parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else on standard output")
  parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
  return parser


def parse(name: str, verb: Verb, words: Sequence[str]) -> argparse.Namespace:
  """The arguments of a verb; raises `UserError` with the nearest option for a typo.

  Beside the verb's own there are `verb`, `argv` (all words) and `overrides` ('group.field=value' of --config...).
  """
  parser = parser_of(name, verb)
  try:
    arguments, rest = parser.parse_known_args(words)
  except UserError:
    # A mistyped option also leaves the right one missing; the typo is the better message.
    if not parser.passes_words_on():
      _refuse_unknown_options(parser, words)
    raise
  takes_config = bool(getattr(arguments, "config", None))
  is_override = [takes_config and word.startswith("--config.") for word in rest]
  unknown = [word for word, is_one in zip(rest, is_override, strict=True) if not is_one]
  _refuse_unknown_options(parser, unknown)
  if unknown:
    raise UserError(f"{unknown[0]!r}: unexpected word")
  arguments.verb, arguments.argv = name, [name, *words]
  arguments.overrides = [word.removeprefix("--config.") for word in rest]
  return arguments


def _refuse_unknown_options(parser: Parser, words: Iterable[str]) -> None:
  known = list(parser.options())
  for word in words:
    option = word.partition("=")[0]
    is_override = option.startswith("--config.") and "--config" in known
    if option.startswith("--") and len(option) > 2 and option not in known and not is_override:
      near = nearest(option, known)
      raise UserError(f"{option}: no such option{near or '; see --help'}")


def nearest(name: str, known: Iterable[str]) -> str:
  """As `config.nearest`, which is slow to import and is needed for errors only."""
  from bigmodel import config

  return config.nearest(name, known)


def without_option(words: Sequence[str], option: str) -> list[str]:
  """The words without an option that has a value, given as `--option=value` or as `--option value`."""
  kept: list[str] = []
  rest = iter(words)
  for word in rest:
    if word == option:
      next(rest)
    elif not word.startswith(f"{option}="):
      kept.append(word)
  return kept
