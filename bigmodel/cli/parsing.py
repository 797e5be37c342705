"""Parses the words of a command to the arguments of a verb; raises `UserError` for invalid words."""

import argparse
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn, Protocol

from bigmodel.cli.console import Json, Output
from bigmodel.errors import UserError

PLACES = ("FILE", "DIR", "FOLDER", "STUDY")  # in the metavars of options and words that name files or folders


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
  """An argparse parser that raises `UserError` for invalid words instead of printing its usage and exiting."""

  def error(self, message: str) -> NoReturn:
    raise UserError(message.removeprefix("argument "))

  def options(self) -> Iterator[str]:
    """The names of all options, such as '--config'."""
    for action in self._actions:
      yield from action.option_strings

  def passes_words_on(self) -> bool:
    """Whether the last words of this verb are another command."""
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

  The namespace also has `verb`, `argv` (all words) and `overrides` ('group.field=value' of --config...).
  """
  parser = parser_of(name, verb)
  option_names = list(parser.options())
  try:
    arguments, rest = parser.parse_known_args(words)
  except UserError:
    # A mistyped option may also leave a required one missing; then the typo is the better message.
    for word in _words_of_verb(parser, words):
      option = word.partition("=")[0]
      if word.startswith("--") and option not in option_names and not option.startswith("--config."):
        raise _unexpected(word, option_names) from None
    raise
  takes_overrides = bool(getattr(arguments, "config", None))
  overrides = [word for word in rest if takes_overrides and word.startswith("--config.")]
  for before, word in zip(["", *rest], rest, strict=False):
    if word not in overrides:
      if before in overrides and "=" not in before and not word.startswith("-"):
        raise UserError(f"{before} {word}: write {before}={word}")
      raise _unexpected(word, option_names)
  _expand_home(parser, arguments)
  arguments.verb, arguments.argv = name, [name, *words]
  arguments.overrides = [word.removeprefix("--config.") for word in overrides]
  return arguments


def _expand_home(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
  """Replaces ~ at the beginning of files and folders, which shells leave as it is in --option=~/file."""
  for action in parser._actions:
    value = getattr(arguments, action.dest, None)
    if isinstance(action.metavar, str) and any(kind in action.metavar for kind in PLACES):
      if isinstance(value, str):
        setattr(arguments, action.dest, os.path.expanduser(value))
      elif isinstance(value, list):
        setattr(arguments, action.dest, [os.path.expanduser(one) if isinstance(one, str) else one for one in value])


def _words_of_verb(parser: Parser, words: Sequence[str]) -> Iterable[str]:
  """The words before a command that the verb passes on, as far as that is certain."""
  if parser.passes_words_on():
    return itertools.takewhile(lambda word: word.startswith("-") and word != "--", words)
  return itertools.takewhile(lambda word: word != "--", words)


def _unexpected(word: str, option_names: Sequence[str]) -> UserError:
  """The error for a word that is not one of the options `option_names`."""
  option = word.partition("=")[0]
  if option.startswith("--config.") and "--config" in option_names:
    return UserError(f"{word}: needs --config=FILE[:arg]")
  if option.startswith("-"):
    return UserError(f"{option}: no such option{nearest(option, option_names) or '; see --help'}")
  return UserError(f"{word!r}: unexpected word")


def nearest(name: str, names: Iterable[str]) -> str:
  """`config.nearest`, imported only for errors because it is slow to import."""
  from bigmodel import config

  return config.nearest(name, names)


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
