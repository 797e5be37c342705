"""Prepares verbs for their work: sets up JAX, joins the other processes of a job, loads the config."""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bigmodel.cli import options
from bigmodel.errors import JobFailed, UserError

if TYPE_CHECKING:  # slow to import
  from bigmodel.config import Config
  from bigmodel.parallel.job import Job
  from bigmodel.study import Study

_job: "Job | None" = None  # of several processes, once this one has joined it


def start() -> None:
  """Sets up JAX and logging for a verb that runs in one process."""
  from bigmodel import hardware

  hardware.setup()
  _log_to_standard_error()


def join(arguments: argparse.Namespace) -> bool:
  """Sets up JAX and logging, and joins the other processes of the job (see `options.add_hosts`).

  Returns whether this process is the one that prints and writes.
  """
  global _job
  from bigmodel import files, hardware
  from bigmodel.parallel import hosts
  from bigmodel.parallel.job import Job

  if getattr(arguments, "worker", ""):
    from bigmodel.workers import worker

    arguments.worker = worker.settle(arguments.worker)
  hardware.setup()
  if hosts.connect(arguments.coordinator, arguments.processes, arguments.process, arguments.verb):
    _job = Job(*hosts.place_in_job())
  _log_to_standard_error()
  if hosts.several():
    hosts.log_to(files.absolute(arguments.workdir) / "logs")
  return hosts.is_first()


def leave() -> None:
  """Waits for the other processes of the job, if this process has joined one, at the end of a verb."""
  if _job is not None:
    _job.leave()


def fail(words: Sequence[str], error: BaseException, code: int, message: str) -> None:
  """Ends the other processes of the job with the same exit code, whether or not this one has joined it.

  Ends this process, too, if it has joined. `words` are those of the command, which may be invalid.
  """
  if _job is not None:
    _job.fail(code, message)
  elif not isinstance(error, JobFailed) and options.last_value(words, "--coordinator"):
    from bigmodel.parallel import rendezvous

    values = [options.last_value(words, name) for name in ("--coordinator", "--processes", "--process")]
    rendezvous.report_failure(values, code, message)


def _log_to_standard_error() -> None:
  logging.basicConfig(level=logging.ERROR, stream=sys.stderr, format="%(message)s")
  logging.getLogger("bigmodel").setLevel(logging.INFO)
  logging.getLogger("absl").setLevel(logging.CRITICAL + 1)  # orbax logs the tracebacks of errors that it also raises


def load(arguments: argparse.Namespace) -> tuple["Config", "Study | None"]:
  """The config of --config with its overrides, and the study that its file defines."""
  from bigmodel import config as config_files
  from bigmodel.train import configs

  config, module = config_files.load(arguments.config)
  configs.check_groups(config)
  config = configs.overridden(config, arguments.overrides)
  if not hasattr(module, "get_study"):
    return config, None
  try:
    return config, module.get_study(config)
  except UserError:
    raise
  except Exception as error:
    first = next(iter(str(error).strip().splitlines()), "")
    raise UserError(f"--config: {arguments.config}: get_study: {type(error).__name__}: {first}") from error
