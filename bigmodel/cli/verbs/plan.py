"""Say what a run or a study costs before it starts: time, memory and money.

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
    "--workdir", default="", metavar="DIR", help="a study's folder, whose finished runs cost nothing more"
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
    help="measure how much steps move activations as width and depth grow; with FILE.html, also write a page",
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
  """One run on this machine."""
  import msgspec

  from bigmodel import assembly, parallel
  from bigmodel.planner import price
  from bigmodel.train.display import duration

  planned, _ = assembly.single_run(config, workdir or ".")
  cost = msgspec.to_builtins(price.price(planned, price.calibrate([planned], {})[0]))
  output.table(f"one run, {duration(cost['expected_seconds'])}", ("what", "value"), list(cost.items()))
  output.notes(parallel.notes_here(planned.config))
  return cost


def _plan_study(config: "Config", study: "Study", workdir: str, output: Output) -> Facts:
  """A study on this machine."""
  from bigmodel import study as studies
  from bigmodel.study import plan as plans

  prepared = studies.prepare(config, study, workdir or ".")
  facts = plans.to_json(studies.make_plan(prepared, plans.read(workdir) if workdir else None))
  plan_tables.show_study_here(facts, study.name, output)
  return facts


def _plan_for_topology(arguments: argparse.Namespace, config: "Config", study: "Study | None", output: Output) -> Facts:
  """A run, a search over its layouts, or a whole study, for chips that need not be present."""
  from bigmodel import assembly, files
  from bigmodel import study as studies
  from bigmodel.parallel import topology
  from bigmodel.planner import compiled, search

  where = topology.parse(arguments.topology)
  if arguments.prices and not Path(arguments.prices).exists():
    raise UserError(f"--prices: no file {arguments.prices!r}")
  prices = files.read_json(arguments.prices or Path(search.__file__).with_name("prices.json"))
  if study is None:
    resolved = assembly.resolve_for_plan(config, where.count)
    if arguments.search:
      return _search(resolved, where, prices, output)
    facts = compiled.plan(resolved, where, prices)
    plan_tables.show_run(facts, output)
    return facts
  if arguments.search:
    raise UserError("--search: is for one run; take a run of the study with --config.model.width=... and the like")
  facts = studies.plan_for(config, study, where, prices)
  plan_tables.show_study(facts, f"{study.name} on {where.name}", output)
  return facts


def _search(config: "Config", where: "Topology", prices: dict[str, float], output: Output) -> Facts:
  from bigmodel.planner import search

  layouts = search.search(config, where, prices)
  if not layouts:
    raise UserError(f"--search: no layout of {where.name} fits; more chips, or smaller batches (train.accumulate)")
  plan_tables.show_layouts(layouts, where.name, output)
  return {"topology": where.name, "best": layouts[0]["overrides"], "layouts": layouts}


def _check_coordinates(config: "Config", page: str, output: Output) -> Facts:
  """How much a step moves activations as the config's model grows, under each parametrization."""
  from bigmodel import assembly
  from bigmodel.planner import parametrizations

  def resolve(resized: "Config") -> "Config":
    assembly.check(resized)
    return assembly.resolve_without_data(resized)

  comparison = parametrizations.compare(config, resolve)
  rows = [
    (one.parametrization, one.axis, f"{one.sizes[0]} to {one.sizes[-1]}", one.check.steepest)
    for one in comparison.measured
  ]
  checks = [
    {
      "parametrization": one.parametrization,
      "axis": one.axis,
      "sizes": list(one.sizes),
      "steepest": one.check.steepest,
      "change": {name: values.tolist() for name, values in one.check.change.items()},
      "slopes": {name: values.tolist() for name, values in one.check.slopes.items()},
    }
    for one in comparison.measured
  ]
  columns = ("parametrization", "axis", "sizes", "steepest slope")
  output.table("changes of activations over 5 steps, as powers of the size", columns, rows)
  for parametrization, reason in comparison.refused.items():
    output.say(f"not measured: {parametrization}: {reason}")
  if page:
    from bigmodel.report import coordinates

    coordinates.write(page, comparison)
  return {"checks": checks, "refused": comparison.refused}
