"""The command: `bigmodel VERB --config=FILE[:arg] --workdir=DIR [--config.group.field=value ...]`.

This file finds the verb, runs it, and turns errors into one line and an exit code: 0 success, 2 invalid input,
75 interrupted but resumable, 1 anything else. A worker exits with 69 to report to the command that started it that its
machine cannot do the work. A verb is a file in `verbs/`. Only the chosen one is imported, and it imports rooms when it
runs, so that `--help` is fast.
"""

import argparse
import atexit
import contextlib
import errno
import gc
import importlib
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import cast

import bigmodel
from bigmodel.cli import parsing, session
from bigmodel.cli.console import Output
from bigmodel.errors import CheckpointError, Interrupted, JobFailed, RunsFailed, UnfitWorker, UserError

SUCCESS, FAILED, INVALID, UNFIT, INTERRUPTED = 0, 1, 2, 69, 75
FOLDER = Path(__file__).with_name("verbs")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one verb and returns the exit code."""
  from_shell = argv is None
  words = list(sys.argv[1:] if argv is None else argv)
  if words[:1] in (["-h"], ["--help"]):
    print(overview(), end="")
    return SUCCESS
  if words[:1] == ["--version"]:
    print(bigmodel.__version__)
    return SUCCESS
  # Errors in parsing are reported with these options, so they are read before. Words after -- are another command's.
  before_dashes = words[: words.index("--")] if "--" in words else words
  verb = words[0] if words else ""
  report = Failure(verb if verb in verbs() else "", as_json="--json" in before_dashes, debug="--debug" in before_dashes)
  try:
    module = find(verb)
    arguments = parsing.parse(verb, module, words[1:])
  except UserError as error:
    code = report.show(error)
    session.fail(before_dashes, error, code, str(error))
    return code
  if getattr(arguments, "restarts", 0) > 0:
    return _supervise(words, arguments)
  if from_shell:
    _collect_less_garbage()
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # silences XLA's notes
  signal.signal(signal.SIGTERM, _interrupt)  # verbs that save before they stop replace this
  return _run(module, arguments)


def _run(verb: parsing.Verb, arguments: argparse.Namespace) -> int:
  """Runs a verb; with --json, prints its document and sends everything else to standard error."""
  is_worker = bool(getattr(arguments, "worker", ""))
  report, output = Failure(arguments.verb, arguments.json, arguments.debug, is_worker), Output(arguments.json)
  try:
    with contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext():
      document = json.dumps(verb.run(arguments, output), allow_nan=False)
  except (Exception, KeyboardInterrupt) as error:
    code = report.show(error)
    session.fail(arguments.argv, error, code, report.describe(error)[0])
    return code
  if arguments.json:
    print(document)
  session.leave()
  return FAILED if output.failed else SUCCESS


class Failure:
  """Reports why a verb failed: in one line to the user, and as an exit code to the shell."""

  def __init__(self, verb: str, as_json: bool, debug: bool, is_worker: bool = False):
    self.verb, self.command = verb, f"bigmodel {verb}".rstrip()
    self.as_json, self.debug, self.is_worker = as_json, debug, is_worker

  def show(self, error: BaseException) -> int:
    """Prints the message and returns the exit code."""
    message, code = self.describe(error)
    if self.debug:
      import traceback

      traceback.print_exception(error)
    print(f"{self.command}: {_on_one_line(message)}", file=sys.stderr)
    if self.as_json:
      print(json.dumps({"error": message, "code": code}))
    return code

  def describe(self, error: BaseException) -> tuple[str, int]:
    """The message and exit code of an error, by its class."""
    match error:
      case UserError():
        return str(error).removeprefix(f"{self.verb}: "), INVALID  # the command's name is printed before it
      case KeyboardInterrupt():
        return "interrupted", INTERRUPTED
      case Interrupted():
        return f"interrupted: {error}; the same command resumes", INTERRUPTED
      case JobFailed():
        return str(error), error.code
      case UnfitWorker():
        return str(error), UNFIT if self.is_worker else FAILED
    first_line = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in first_line:
      return f"out of memory: use a smaller model, batch or context, or more devices ({first_line})", FAILED
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
      return f"the disk is full: {first_line}", FAILED
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
      return f"{error.filename}: cannot be used ({error.strerror})", INVALID
    return first_line if isinstance(
      error, CheckpointError | RunsFailed
    ) else f"{type(error).__name__}: {first_line}", FAILED


def _on_one_line(message: str) -> str:
  """The message as a line of printable characters; very long values, such as from a damaged file, are shortened."""
  printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
  return re.sub(r"\S{250,}", lambda match: f"{match[0][:100]}...{match[0][-50:]}", printable)


def verbs() -> dict[str, Path]:
  """The file of every verb, by the name of the verb."""
  return {path.stem.rstrip("_"): path for path in sorted(FOLDER.glob("[!_]*.py"))}


def find(name: str) -> parsing.Verb:
  """Imports a verb; raises `UserError` for an unknown one."""
  files = verbs()
  if name in files:
    return cast(parsing.Verb, importlib.import_module(f"bigmodel.cli.verbs.{files[name].stem}"))
  if not name:
    raise UserError(f"a verb is missing; use one of {', '.join(files)}")
  raise UserError(f"no verb {name!r}{parsing.nearest(name, files)}; use one of {', '.join(files)}")


def summary(path: Path) -> str:
  """What a verb does, in one line: the first line of its file, which is read without importing it."""
  with path.open(encoding="utf-8") as file:
    return file.readline().strip().removeprefix('"""').removesuffix('"""')


def overview() -> str:
  """The text of `bigmodel --help`."""
  files = verbs()
  width = max(map(len, files)) + 2
  lines = [f"  {name:{width}}{summary(path)}" for name, path in files.items()]
  return "\n".join(
    [
      "usage: bigmodel VERB [options]",
      "",
      "Scaling experiments, from one config file to a decision.",
      "",
      "verbs:",
      *lines,
      "",
      "`bigmodel VERB --help` lists a verb's options and ends with examples.",
      "Every verb accepts --json (print one JSON document and nothing else on standard output) and --debug (show the",
      "traceback of an error). `bigmodel --version` prints the version.",
      "Exit codes: 0 success, 2 invalid input, 75 interrupted (rerunning the command resumes), 1 anything else.",
      "",
    ]
  )


def _supervise(words: Sequence[str], arguments: argparse.Namespace) -> int:
  """Runs the command, without --restarts, in a child process that is restarted when it dies."""
  from bigmodel.train import supervise

  command = [sys.executable, "-m", "bigmodel.cli", *parsing.without_option(words, "--restarts")]
  return supervise.supervise(
    command,
    arguments.restarts,
    lambda: supervise.progress(arguments.workdir),
    is_over=lambda: supervise.has_record(arguments.workdir),
  )


def _collect_less_garbage() -> None:
  """Makes garbage collection rare: searching the objects of imports and tracing took a third of a short command."""
  gc.set_threshold(100_000, 10, 10)
  atexit.register(gc.freeze)


def _interrupt(signum: int, frame: FrameType | None) -> None:
  raise KeyboardInterrupt
