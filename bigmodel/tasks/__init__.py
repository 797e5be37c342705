"""Tasks: what a batch means, the loss, the metrics."""

from typing import Any

from bigmodel.config import Config, require, require_choice

TASKS = ("causal_lm",)


def fields() -> dict[str, Any]:
  """The fields of `config.task`, with defaults."""
  return {"name": "causal_lm", "z_loss": 0.0}


def check(config: Config) -> None:
  require_choice("task.name", config.task.name, TASKS)
  require(config.task.z_loss >= 0, f"config.task.z_loss: {config.task.z_loss} is negative")
