"""List the model families, and count parameters and FLOPs of published models or of a config's models."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import bigmodel
from bigmodel.cli import options, session
from bigmodel.cli.console import Facts, Output
from bigmodel.errors import UserError

if TYPE_CHECKING:
  from bigmodel.config import Config

EXAMPLES = (
  "bigmodel models",
  "bigmodel models --config=configs/quickstart.py",
  "bigmodel models --config=configs/published.py:llama2_7b",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_config(parser, required=False)


def run(arguments: argparse.Namespace, output: Output) -> list[Facts]:
  from bigmodel import models

  configs = _of_argument(arguments) if arguments.config else _published()
  rows = [_count(name, config) for name, config in configs]
  shown = [
    (
      row["name"],
      row["family"],
      _short(row["params_total"]),
      _short(row["params_active"]),
      f"{row['flops_exact']:.3g}",
      row["unit"],
    )
    for row in rows
  ]
  columns = ("model", "family", "parameters", "active", "training FLOPs", "per")
  output.table(f"families: {', '.join(models.FAMILIES)}", columns, shown)
  return rows


def _of_argument(arguments: argparse.Namespace) -> list[tuple[str, "Config"]]:
  """The config's model, or every size of its study."""
  from bigmodel import config as configs

  config, study = session.load(arguments)
  if study is None or not hasattr(study.design, "sizes"):
    return [("config", config)]
  sizes: list[Mapping[str, int]] = getattr(study.design, "sizes")  # noqa: B009
  return [(_label(size), configs.with_overrides(config, size)) for size in sizes]


def _published() -> list[tuple[str, "Config"]]:
  from bigmodel import config as configs

  path = Path(bigmodel.__file__).parents[1] / "configs" / "published.py"
  if not path.exists():
    raise UserError("models: no configs/published.py beside the package; give --config=FILE[:arg]")
  module, _ = configs.load_module(str(path))
  return [(name, module.get_config(name)) for name in module.NAMES]


def _count(name: str, config: "Config") -> Facts:
  from bigmodel import models
  from bigmodel.train import resolution

  models.check(config)
  resolved = resolution.resolve_without_data(config)
  counts = models.counts_of(resolved)
  unit = "token" if config.data.kind == "text" else "example"
  shape = models.shape_of(resolved).describe()
  return {"name": name, **shape, "unit": unit, **counts.params(), **counts.flops(1)}


def _label(size: Mapping[str, int]) -> str:
  return ", ".join(f"{name.split('.')[-1]} {value}" for name, value in size.items())


def _short(number: float) -> str:
  return f"{number:.3g}" if number < 1e6 else f"{number / 1e6:,.4g} M"
