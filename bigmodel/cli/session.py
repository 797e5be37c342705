"""Prepares verbs for their work: sets up JAX, joins the other processes of a job, loads the config."""

import argparse
import logging
import sys
from typing import TYPE_CHECKING

from bigmodel.errors import UserError

if TYPE_CHECKING:  # slow to import
  from bigmodel.config import Config
  from bigmodel.study import Study


def start() -> None:
  """Sets up JAX and logging for a verb that runs in one process."""
  from bigmodel import hardware

  hardware.setup()
  _log_to_standard_error()


def join(arguments: argparse.Namespace) -> bool:
  """Sets up JAX and logging, and joins the other processes of the job (see `options.add_hosts`).

  Returns whether this process is the one that prints and writes.
  """
  from bigmodel import files, hardware
  from bigmodel.parallel import hosts

  if getattr(arguments, "worker", ""):
    from bigmodel.workers import worker

    arguments.worker = worker.settle(arguments.worker)
  hardware.setup()
  hosts.connect(arguments.coordinator, arguments.processes, arguments.process)
  _log_to_standard_error()
  if hosts.several():
    hosts.log_to(files.absolute(arguments.workdir) / "logs")
  return hosts.is_first()


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
