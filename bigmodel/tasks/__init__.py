"""Tasks: what a batch means, the loss, the metrics."""

from typing import Any

from bigmodel.config import Config, require, require_choice

TASKS = ("causal_lm",)


def fields() -> dict[str, Any]:
  """The fields of `config.task`, with defaults."""
  return {"name": "causal_lm", "z_loss": 0.0, "balance_loss": 0.01}  # balance: of a mixture of experts


def check(config: Config) -> None:
  require_choice("task.name", config.task.name, TASKS)
  for name in ("z_loss", "balance_loss"):
    require(config.task[name] >= 0, f"config.task.{name}: {config.task[name]} is negative")
