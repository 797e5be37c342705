"""Estimate what a run or a study costs before it starts: time, memory and money.

Without --topology the plan is for this machine. With it, the step is compiled for chips that need not be present, if
libtpu is installed, and is otherwise planned by arithmetic.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bigmodel.cli import options, plan_tables, session
from bigmodel.cli.console import Facts, Output
from bigmodel.errors import UserError

if TYPE_CHECKING:
  from bigmodel.config import Config
  from bigmodel.parallel.topology import Topology
  from bigmodel.study import Study

EXAMPLES = (
  "bigmodel plan --config=configs/quickstart.py",
  "bigmodel plan --config=configs/quickstart.py --topology=v6e:4x4",
  "bigmodel plan --config=configs/published.py:llama2_7b --topology=v5p:4x4x4",
  "bigmodel plan --config=configs/published.py:llama2_7b --topology=v5e:16x16 --search",
  "bigmodel plan --config=configs/quickstart.py --coordinate-check=page.html",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_config(parser)
  parser.add_argument(
    "--workdir", default="", metavar="DIR", help="a study's folder, whose finished runs are not counted again"
  )
  parser.add_argument(
    "--topology", default="", metavar="KIND:SHAPE", help="chips to plan for: v5e:16x16, v5p:4x4x4, v6e:4x4, h100:8, ..."
  )
  parser.add_argument("--search", action="store_true", help="rank meshes, remat policies and microbatches, best first")
  parser.add_argument(
    "--prices", default="", metavar="FILE.json", help="dollars per chip-hour by kind (default: the package's prices)"
  )
  parser.add_argument(
    "--coordinate-check",
    nargs="?",
    const="",
    metavar="FILE.html",
    help="measure how much steps change activations as width and depth grow; with FILE.html, also write a page",
  )


def run(arguments: argparse.Namespace, output: Output) -> Facts:
  session.start()
  config, study = session.load(arguments)
  if arguments.coordinate_check is not None:
    return _check_coordinates(config, arguments.coordinate_check, output)
  if arguments.topology or arguments.search:
    return _plan_for_topology(arguments, config, study, output)
  if study is None:
    return _plan_run(config, arguments.workdir, output)
  return _plan_study(config, study, arguments.workdir, output)


def _plan_run(config: "Config", workdir: str, output: Output) -> Facts:
  """Plans one run on this machine."""
  import msgspec

  from bigmodel import parallel
  from bigmodel.planner import price
  from bigmodel.train import single_run
  from bigmodel.train.display import duration

  planned, _ = single_run.single_run(config, workdir or ".")
  cost = msgspec.to_builtins(price.price(planned, price.calibrate([planned], {})[0]))
  output.table(f"one run, {duration(cost['expected_seconds'])}", ("quantity", "value"), list(cost.items()))
  output.notes(parallel.notes_here(planned.config))
  return cost


def _plan_study(config: "Config", study: "Study", workdir: str, output: Output) -> Facts:
  """Plans a study on this machine."""
  from bigmodel import study as studies
  from bigmodel.study import plan as plans

  prepared = studies.prepare(config, study, workdir or ".")
  facts = plans.to_json(studies.make_plan(prepared, plans.read(workdir) if workdir else None))
  plan_tables.show_study_here(facts, study.name, output)
  return facts


def _plan_for_topology(arguments: argparse.Namespace, config: "Config", study: "Study | None", output: Output) -> Facts:
  """Plans a run, a search over its layouts, or a whole study, for chips that need not be present."""
  from bigmodel import files
  from bigmodel import study as studies
  from bigmodel.parallel import topology
  from bigmodel.planner import plan, search
  from bigmodel.train import resolution

  where = topology.parse(arguments.topology)
  if arguments.prices and not Path(arguments.prices).exists():
    raise UserError(f"--prices: no file {arguments.prices!r}")
  prices = files.read_json(arguments.prices or Path(search.__file__).with_name("prices.json"))
  if study is None:
    resolved = resolution.resolve_for_plan(config, where.count)
    if arguments.search:
      return _search(resolved, where, prices, output)
    planned = plan.plan_run(resolved, where, prices)
    plan_tables.show_run(planned, output)
    return plan_tables.run_facts(planned)
  if arguments.search:
    raise UserError("--search: works for one run, and this config file defines a study")
  planned = studies.plan_for(config, study, where, prices)
  plan_tables.show_study(planned, output)
  return plan_tables.study_facts(planned)


def _search(config: "Config", where: "Topology", prices: dict[str, float], output: Output) -> Facts:
  from bigmodel.planner import search

  layouts = search.search(config, where, prices)
  if not layouts:
    raise UserError(f"--search: no layout of {where.name} fits; more chips, or smaller batches (train.accumulate)")
  plan_tables.show_layouts(layouts, where.name, output)
  facts = [plan_tables.run_facts(layout.plan) | {"overrides": layout.overrides} for layout in layouts]
  return {"topology": where.name, "best": layouts[0].overrides, "layouts": facts}


def _check_coordinates(config: "Config", page: str, output: Output) -> Facts:
  """Measures how much a step changes activations as the config's model grows, under each parametrization."""
  from bigmodel.planner import parametrizations
  from bigmodel.train import resolution

  def resolve(resized: "Config") -> "Config":
    resolution.check(resized)
    return resolution.resolve_without_data(resized)

  comparison = parametrizations.compare(config, resolve)
  rows = [
    (result.parametrization, result.axis, f"{result.sizes[0]} to {result.sizes[-1]}", result.check.steepest)
    for result in comparison.measured
  ]
  checks = [
    {
      "parametrization": result.parametrization,
      "axis": result.axis,
      "sizes": list(result.sizes),
      "steepest": result.check.steepest,
      "change": {name: values.tolist() for name, values in result.check.change.items()},
      "slopes": {name: values.tolist() for name, values in result.check.slopes.items()},
    }
    for result in comparison.measured
  ]
  columns = ("parametrization", "axis", "sizes", "steepest slope")
  output.table("changes of activations over 5 steps, as powers of the size", columns, rows)
  for parametrization, reason in comparison.refused.items():
    output.say(f"not measured: {parametrization}: {reason}")
  if page:
    from bigmodel.report import coordinates

    coordinates.write(page, comparison)
  return {"checks": checks, "refused": comparison.refused}
