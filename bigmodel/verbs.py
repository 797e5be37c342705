"""What each verb of the command does. A verb prints for people, or returns one JSON value."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from bigmodel import config as configs
from bigmodel.console import plain_console
from bigmodel.errors import UserError
from bigmodel.files import absolute

Arguments = argparse.Namespace


def show_table(arguments: Arguments, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
  """A table on standard output; nothing with --json."""
  if arguments.json:
    return
  table = Table(title=title, title_justify="left")
  for index, column in enumerate(columns):
    table.add_column(column, justify="left" if index == 0 else "right")
  for row in rows:
    table.add_row(*(_show(cell) for cell in row))
  plain_console().print(table)


def _show(value: Any) -> str:
  if value is None:
    return "-"
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, int):
    return f"{value:,}"
  if isinstance(value, float):
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3e}"
  if isinstance(value, list | tuple) and len(value) == 2 and all(x is None or isinstance(x, float) for x in value):
    return f"{_show(value[0])} to {_show(value[1])}"
  return str(value)


def _show_notes(arguments: Arguments, notes: Sequence[str]) -> None:
  """What a preset wished for and did not get, a line each; nothing with --json."""
  if not arguments.json:
    for note in dict.fromkeys(notes):
      plain_console().print(note, highlight=False, soft_wrap=True)


def setup(arguments: Arguments | None = None) -> bool:
  """Prepares JAX and joins the other processes of the job; true in the process that talks and writes."""
  from bigmodel import hardware
  from bigmodel.parallel import hosts

  if arguments is not None and getattr(arguments, "worker", ""):
    from bigmodel.sweep.workers import settle

    arguments.worker = settle(arguments.worker)
  hardware.setup()
  if arguments is not None:
    hosts.connect(arguments.coordinator, arguments.processes, arguments.process)
  logging.basicConfig(level=logging.ERROR, stream=sys.stderr, format="%(message)s")
  logging.getLogger("bigmodel").setLevel(logging.INFO)
  logging.getLogger("absl").setLevel(logging.CRITICAL + 1)  # orbax logs tracebacks of what it raises anyway
  if arguments is not None and hosts.several():
    hosts.log_to(absolute(arguments.workdir) / "logs")
  return hosts.is_first()


def load(arguments: Arguments) -> tuple[Any, Any]:
  config, module = configs.load(arguments.config, arguments.overrides)
  study = None
  if hasattr(module, "get_study"):
    try:
      study = module.get_study(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise UserError(f"--config: {arguments.config}: get_study: {error}") from error
  return config, study


def data(arguments: Arguments) -> dict[str, Any]:
  setup()
  from bigmodel import data as room
  from bigmodel.data import pipeline

  config, _ = load(arguments)
  room.check(config)
  prepared = pipeline.prepare(config)
  card = prepared.card
  if arguments.card:
    from bigmodel.data import corpus
    from bigmodel.report import card as pages

    pages.write(arguments.card, prepared, corpus.tokenizer_of(config) if config.data.kind == "text" else None)
  columns = ("documents", "bytes", "tokens") if config.data.kind == "text" else ("examples",)
  rows = [(split, *(facts[name] for name in columns)) for split, facts in card["splits"].items()]
  if config.data.kind == "text":
    title = f"{card['name']} as {card['tokenizer']}, {card['vocab']:,} different tokens"
  else:
    title = f"{card['name']}: {card['inputs']} -> {card['outputs']}"
  show_table(arguments, f"{title}, sha256 {card['sha256'][:12]}", ("split", *columns), rows)
  for step, found in card.get("steps", {}).items():
    if found and not arguments.json:
      total = found if isinstance(found, int) else sum(found.values())
      plain_console().print(f"{step}: {total:,}", highlight=False)
  return card


def plan(arguments: Arguments) -> dict[str, Any]:
  setup()
  from bigmodel import parallel
  from bigmodel import study as studies
  from bigmodel.plan import price
  from bigmodel.sweep import folder
  from bigmodel.train.display import duration

  config, study = load(arguments)
  if arguments.coordinate_check is not None:
    return _coordinates(arguments, config)
  if arguments.topology or arguments.search:
    return _plan_for(arguments, config, study)
  if study is None:
    run, _ = studies.single_run(config, arguments.workdir or ".")
    cost = price.price(run, price.calibrate([run], {})[0])
    show_table(arguments, f"one run, {duration(cost['expected_seconds'])}", ("what", "value"), list(cost.items()))
    _show_notes(arguments, parallel.notes_here(run.config))
    return cost
  prepared = studies.prepare(config, study, arguments.workdir or ".")
  result = studies.plan(prepared, folder.read_plan(arguments.workdir) if arguments.workdir else None)
  rows = [
    (
      run["run_id"],
      ", ".join(run["roles"]),
      run["params_total"],
      run["tokens"],
      run["flops_6nd"],
      run["expected_seconds"],
    )
    for run in result["runs"]
  ]
  if result["target"]:
    target = result["target"]
    rows.append(
      ("target", "at most", target["params_total"], target["tokens"], target["flops_6nd"], target["expected_seconds"])
    )
  total = result["total"]
  flops, seconds = total["flops_6nd"], total["expected_seconds"]
  title = f"{study.name}: {total['runs']} runs, {flops:.3g} FLOPs (6ND), {duration(seconds)} here"
  show_table(arguments, title, ("run", "role", "N", "D", "6ND", "seconds"), rows)
  return result


def _coordinates(arguments: Arguments, config: Any) -> dict[str, Any]:
  """How much a step moves activations as the config's model grows, under each parametrization."""
  from bigmodel import optim
  from bigmodel import study as studies
  from bigmodel.errors import UserError
  from bigmodel.optim.parametrization import PARAMETRIZATIONS, multiples
  from bigmodel.plan import coordinates

  for name in ("width", "layers"):
    if name not in config.model:
      raise UserError(f"--coordinate-check: a {config.model.family} has no model.{name}")
  base = config.optim.base or (f"model.width={config.model.width}", f"model.layers={config.model.layers}")

  def resolved(kind: str, axis: str, size: int) -> Any:
    own = config.copy_and_resolve_references()
    own.model[axis] = size
    own.optim.update(schedule="constant", weight_decay=0.0)
    own.optim.update({name: optim.fields()[name] for name in ("final", "decay", "decays", "independent_decay")})
    own.optim.parametrization, own.optim.base = kind, () if kind == "standard" else base
    own.train.tokens, own.train.steps = 0, 5
    studies.check(own)
    return studies.resolve_without_data(own)

  sizes_of = {axis: [config.model[axis] * factor for factor in (1, 2, 4)] for axis in ("width", "layers")}
  models, refused = {}, {}  # everything is checked before anything is measured
  for kind in PARAMETRIZATIONS:
    try:
      models[kind] = {axis: [resolved(kind, axis, size) for size in sizes] for axis, sizes in sizes_of.items()}
      for own in models[kind]["width"] + models[kind]["layers"]:
        multiples(own)
    except UserError as error:
      if kind in ("standard", config.optim.parametrization):
        raise
      models.pop(kind, None)
      refused[kind] = str(error)
  found, rows = [], []
  for kind, by_axis in models.items():
    for axis, sizes in sizes_of.items():
      checked = coordinates.check(by_axis[axis], sizes, steps=5, seeds=1)
      facts = {"parametrization": kind, "axis": axis, "sizes": sizes, "steepest": checked.steepest}
      found.append(facts | {"change": {k: v.tolist() for k, v in checked.change.items()},
                            "slopes": {k: v.tolist() for k, v in checked.slopes.items()}})  # fmt: skip
      rows.append((kind, axis, f"{sizes[0]} to {sizes[-1]}", checked.steepest))
  columns = ("parametrization", "axis", "sizes", "steepest slope")
  show_table(arguments, "changes of activations over 5 steps, as powers of the size", columns, rows)
  for kind, reason in refused.items():
    if not arguments.json:
      plain_console().print(f"not measured: {kind}: {reason}", highlight=False, markup=False)
  if arguments.coordinate_check:
    from bigmodel.report import coordinates as drawing

    drawing.write(arguments.coordinate_check, found, rows, refused)
  return {"checks": found, "refused": refused}


def _plan_for(arguments: Arguments, config: Any, study: Any) -> dict[str, Any]:
  """Plans a run, a search over its layouts, or a whole study for chips that need not be here."""
  from bigmodel import study as studies
  from bigmodel.files import read_json
  from bigmodel.parallel import topology
  from bigmodel.plan import compiled, search

  where = topology.parse(arguments.topology)
  if arguments.prices and not Path(arguments.prices).exists():
    raise UserError(f"--prices: no file {arguments.prices!r}")
  prices = read_json(arguments.prices or Path(search.__file__).with_name("prices.json"))
  if study is not None:
    if arguments.search:
      raise UserError("--search: is for one run; take a run of the study with --config.model.width=... and the like")
    result = studies.plan_for(config, study, where, prices)
    columns = ("role", "run", "N", "tokens", "step s", "hours", "chip-hours", "fits")
    rows = [
      (r["role"], r["name"], r["params_total"], r["tokens"], r["step_seconds"], r["hours"], r["chip_hours"], r["fits"])
      for r in result["runs"]
    ]
    total = result["total"]
    cost = "" if total["cost"] is None else f", {total['cost']:,.0f} dollars"
    title = f"{study.name} on {where.name}: {total['chip_hours']:.4g} chip-hours{cost};"
    title += f" critical path {total['critical_path_hours']:.4g} h"
    show_table(arguments, title, columns, rows)
    _show_notes(arguments, [note for r in result["runs"] for note in r["notes"]])
    return result
  config = studies.resolve_for_plan(config, where.count)
  if arguments.search:
    found = search.search(config, where, prices)
    if not found:
      raise UserError(f"--search: no layout of {where.name} fits; more chips, or smaller batches (train.accumulate)")
    columns = ("overrides", "fits", "peak GB", "step s", "MFU", "hours", "compiled")
    rows = [
      (
        _layout(r["overrides"]),
        r["fits"],
        r["peak_bytes"] / 1e9,
        r["step_seconds"],
        r["mfu"],
        r["hours"],
        bool(r["compiled"]),
      )
      for r in found
    ]
    show_table(arguments, f"layouts on {where.name}, best first", columns, rows)
    if not arguments.json:
      print(" ".join(f"--config.{name}={value}" for name, value in found[0]["overrides"].items()))
    return {"topology": where.name, "best": found[0]["overrides"], "layouts": found}
  result = compiled.plan(config, where, prices)
  _show_plan(arguments, result)
  return result


def _layout(overrides: dict[str, Any]) -> str:
  """What differs from one device, as 'fsdp 64, remat full'."""
  short = {name.split(".")[1]: value for name, value in overrides.items()}
  return ", ".join(f"{name} {value}" for name, value in short.items() if value not in (0, 1))


def _show_plan(arguments: Arguments, facts: dict[str, Any]) -> None:
  gigabytes = lambda value: None if value is None else f"{value / 1e9:.2f} GB"
  source = facts["compiled"] or facts["analytic"]
  compiled_peak = gigabytes(source["peak_bytes"]) if facts["compiled"] else facts["why_not_compiled"]
  parts = facts["analytic"]["parts"]
  rows = [
    ("mesh", ", ".join(f"{axis} {size}" for axis, size in facts["mesh"].items()) or "one device"),
    ("parameters", facts["params_total"]),
    ("a device holds: parameters", gigabytes(parts["parameters"])),
    ("optimizer state", gigabytes(parts["optimizer"])),
    ("activations (arithmetic)", gigabytes(sum(v for k, v in parts.items() if k not in ("parameters", "optimizer")))),
    ("peak, by arithmetic", gigabytes(facts["analytic"]["peak_bytes"])),
    ("peak, by the compiler", compiled_peak),
    ("memory", gigabytes(facts["memory_bytes"])),
    ("fits", facts["fits"]),
    *((f"{name} a step", value) for name, value in facts["flops_per_step"].items()),
    ("compiler's cycles", None if source["cycle_seconds"] is None else f"{source['cycle_seconds']:.3g} s"),
    ("computation", f"{facts['compute_seconds']:.3g} s"),
    ("step", f"{facts['step_seconds']:.3g} s"),
    ("MFU (flops_exact)", f"{facts['mfu']:.1%}"),
    ("tokens/s", facts["tokens_per_second"]),
    ("steps", facts["steps"]),
    ("hours", facts["hours"]),
    ("chip-hours", facts["chip_hours"]),
    ("cost", None if facts["cost"] is None else f"{facts['cost']:,.0f} dollars"),
  ]  # fmt: skip
  show_table(arguments, f"one run on {facts['topology']}", ("what", "value"), rows)
  _show_notes(arguments, facts["notes"])
  moved = [
    (c["kind"], c["group"], c["overlaps"], c["count"], f"{c['bytes'] / 1e9:.3f} GB", f"{c['seconds']:.3g} s")
    for c in source["collectives"]
    if c["bytes"] > 1e5
  ]
  columns = ("collective", "devices", "overlaps", "times", "sent a step", "on the wire")
  show_table(arguments, "a device's collectives", columns, moved)


def train(arguments: Arguments) -> dict[str, Any]:
  talks = setup(arguments)
  from bigmodel import parallel, record
  from bigmodel import study as studies
  from bigmodel.parallel import hosts
  from bigmodel.train.display import Display
  from bigmodel.train.loop import train_runs
  from bigmodel.train.run import interruptible, open_folder

  config, _ = load(arguments)
  with interruptible() as stop:
    run, corpus = studies.single_run(config, arguments.workdir)
    hosts.require_same([configs.flatten(run.config), str(run.folder), arguments.profile], "config")
    hosts.require_shared(run.folder)
    hosts.first(lambda: open_folder(run))
    ended = hosts.first(lambda: record.read(run.folder))
    if ended is None:
      with Display(quiet=arguments.json or not talks) as display:
        for note in parallel.notes_here(run.config):
          display.say(note)
        (ended,) = train_runs([run], corpus, display, stop, profile=arguments.profile)
  names = (
    "run_id",
    "status",
    "params_total",
    "tokens",
    "loss_train",
    "loss_eval",
    "loss_eval_stderr",
    "bits_per_byte",
    "seconds",
  )
  if talks:
    facts = [(name, ended[name], None) for name in names if ended[name] is not None]
    facts += [(name, value, ended["intervals"].get(name)) for name, value in ended["metrics"].items()]
    facts += [("error", ended["error"], None)] if ended["error"] else []
    show_table(arguments, str(run.folder), ("field", "value", "90% interval"), facts)
  return ended


def launch(arguments: Arguments) -> dict[str, Any]:
  from bigmodel import cli
  from bigmodel.parallel import launch as recipes
  from bigmodel.parallel import topology

  command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
  if not command or command[0] not in ("train", "study"):
    raise UserError("launch: end with what to run there: -- train --config=... --workdir=..., or -- study ...")
  inner = cli._parse(command)  # what is wrong with it is said here, not on the machines
  where = topology.parse(arguments.topology, devices=False)
  names = ("name", "zone", "runtime", "image", "time", "source")
  settings = {name: getattr(arguments, name) for name in names}
  settings |= {"restarts": inner.restarts or 3, "workdir": inner.workdir}
  text = recipes.recipe(arguments.on, command, where, settings)
  if arguments.dry_run:
    if not arguments.json:
      print(text, end="")
    return {"on": arguments.on, "recipe": text, "started": False}
  code = recipes.start(arguments.on, text)
  if code:
    raise UserError(f"launch: {recipes.NEEDS[arguments.on]} ended with code {code}")
  return {"on": arguments.on, "recipe": text, "started": True}
