"""Verbs of studies and sweeps: run them, look at them while they run, and write their reports."""

import time
from pathlib import Path
from typing import Any

from bigmodel import config as configs
from bigmodel.console import plain_console
from bigmodel.errors import UserError
from bigmodel.verbs import Arguments, load, setup, show_table


def study(arguments: Arguments) -> dict[str, Any]:
  talks = setup(arguments)
  config, the_study = load(arguments)
  if the_study is None:
    raise UserError(f"--config: {arguments.config} has no get_study(config); use bigmodel train")
  return _run_study(arguments, config, the_study, talks)


def sweep(arguments: Arguments) -> dict[str, Any]:
  """A study without laws, of the config's own `get_study` or of axes that the command names."""
  talks = setup(arguments)
  from bigmodel import study as studies
  from bigmodel.sweep import spaces

  config, the_study = load(arguments)
  if arguments.axis:
    design = spaces.of_arguments(arguments.axis, arguments.points, arguments.method, arguments.seeds)
    name = (
      f"{Path(arguments.config.partition(':')[0]).stem} by {', '.join(a.partition('=')[0] for a in arguments.axis)}"
    )
    the_study = studies.Study(name, "Which settings are best?", design, laws=())
  elif arguments.points or arguments.seeds > 1:
    raise UserError("--points, --seeds: are of --axis; a get_study has a design, such as Repeated(design, seeds)")
  if the_study is None or the_study.laws:
    raise UserError(f"--axis: say what to vary; {arguments.config} has no get_study(config) without laws")
  return _run_study(arguments, config, the_study, talks)


def _run_study(arguments: Arguments, config: Any, the_study: Any, talks: bool) -> dict[str, Any]:
  """All of a study, or a worker's part of its training."""
  from bigmodel import study as studies
  from bigmodel.parallel import hosts
  from bigmodel.sweep import workers
  from bigmodel.train.run import interruptible

  asked = workers.Workers.parse(arguments.workers, arguments.worker_options) if arguments.workers else None
  if asked and hosts.several():
    raise UserError("--workers: a job of several processes starts none; it can be one, with --worker=NAME")
  quiet = arguments.json or not talks
  with interruptible() as stop:
    prepared = studies.prepare(config, the_study, arguments.workdir)
    hosts.require_same([configs.flatten(config), list(prepared.runs), arguments.retry, arguments.worker], "study")
    hosts.require_shared(prepared.workdir)
    if arguments.worker:
      studies.work(prepared, arguments.worker, quiet, stop)
      return {"worker": arguments.worker}
    command = workers.command_of_workers(arguments.argv)
    result = studies.run_study(prepared, quiet, stop, arguments.retry, asked, command)
  if talks:
    _show_report(arguments, result)
  return result


def _show_board(arguments: Arguments, board: dict[str, Any]) -> None:
  rows = []
  for place, cell in enumerate(board["cells"][:20], 1):
    values = [cell["overrides"].get(name) for name in board["axes"]]
    rows.append((place, *values, _runs_of(cell), cell["loss"], cell["std"], _verdict_of(cell)))
  more = len(board["cells"]) - len(rows)
  title = f"leaderboard{f', {more} more in the report' if more else ''}"
  show_table(arguments, title, ("place", *board["axes"], "runs", "loss", "± between seeds", "verdict"), rows)
  rates = []
  for row in board["learning_rates"][:20]:
    setting = ", ".join(f"{name} {x}" for name, x in row["others"].items()) or "all"
    rates.append((setting, _best_rate_of(row), row["interval90"], row["sensitivity"]))
  if rates:
    show_table(arguments, "learning rates", ("setting", "best", "90% interval", "sensitivity"), rates)
  if board["noise"] is not None and not arguments.json:
    compared = sum(cell["worse"] is not None for cell in board["cells"])
    plain_console().print(
      f"noise between seeds {board['noise']:.2g}; differences below {board['resolution']:.2g} are not significant. With"
      f" 90% confidence the best setting is among {board['candidates']} of {compared}, and"
      f" {compared - board['alike']} are worse than others.",
      highlight=False,
    )


def _runs_of(cell: dict[str, Any]) -> str:
  """How many runs of a setting finished, and what became of the others."""
  ends = [f"{cell[name]} {name}" for name in ("diverged", "stopped") if cell[name]]
  whole = f"{cell['finished']} of {cell['runs']}" if cell["finished"] < cell["runs"] else str(cell["finished"])
  return f"{whole} ({', '.join(ends)})" if ends else whole


def _verdict_of(cell: dict[str, Any]) -> str:
  return "worse" if cell["worse"] else "may be the best" if cell["may_be_best"] else ""


def _best_rate_of(row: dict[str, Any]) -> Any:
  if row["flat"]:
    return f"anywhere between{', or beyond' if row['edge'] else ''}"
  return f"{row['best_tried']:.4g}, at an edge" if row["edge"] else row["best"]


def _show_report(arguments: Arguments, result: dict[str, Any]) -> None:
  for law in result["laws"]:
    rows = [(name, value, law["intervals"].get(name)) for name, value in law["params"].items()]
    show_table(arguments, f"{law['name']} ({law['convention']})", ("parameter", "value", "90% interval"), rows)
  forecast = result["forecast"]
  if forecast:
    outcome = (
      "not run yet"
      if forecast["actual"] is None
      else f"{forecast['actual']:.4f}, {'inside' if forecast['inside'] else 'OUTSIDE'}"
    )
    rows = [
      ("N, D, C", f"{forecast['target']['N']:,}, {forecast['target']['D']:,}, {forecast['target']['C']:.3g}"),
      ("forecast loss", forecast["predicted"]),
      ("90% interval", forecast["interval90"]),
      ("truth", outcome),
      ("noise between seeds", result["noise_floor"]["std"] if result["noise_floor"] else None),
    ]
    show_table(arguments, f"forecast sealed {forecast['sealed_at'][:19]}", ("what", "value"), rows)
  if result["sweep"]:
    _show_board(arguments, result["sweep"])
  if not arguments.json:
    plain_console().print(f"report: {Path(arguments.workdir) / 'report.html'}")


def status(arguments: Arguments) -> dict[str, Any]:
  from bigmodel import record
  from bigmodel.sweep import folder

  while True:
    rows = folder.status(arguments.workdir)
    progress = folder.progress(arguments.workdir, rows)
    if arguments.watch and not arguments.json:
      plain_console().clear()
    _show_status(arguments, rows, progress)
    if not arguments.watch or all(row["state"] in record.STATUSES for row in rows):
      return {"runs": rows, **progress}
    time.sleep(arguments.watch)


def _show_status(arguments: Arguments, rows: list[dict[str, Any]], progress: dict[str, Any]) -> None:
  from bigmodel.train.display import duration

  columns = ("run", "state", "step", "of", "seconds", "left", "loss")
  shown = [tuple(r.get(name) for name in ("run_id", "state", "step", "steps", "seconds", "seconds_left", "loss_eval"))
           for r in rows]  # fmt: skip
  if arguments.watch:  # what changes, and no more than a screen
    shown = [row for row in shown if row[1] == "running"][:20]
  states = ", ".join(f"{count} {state}" for state, count in progress["states"].items())
  show_table(arguments, f"{arguments.workdir}: {states}", columns, shown)
  if arguments.json:
    return
  for failure in progress["failures"][:10]:
    plain_console().print(f"{failure['run_id']}  {failure['error']}", highlight=False)
  if progress["expected_seconds"]:
    spent, planned = duration(progress["seconds"]), duration(progress["expected_seconds_of_done"])
    left = duration(progress["seconds_left"])
    plain_console().print(f"{spent} of training, {planned} by the plan for as much; about {left} left", highlight=False)


def report(arguments: Arguments) -> dict[str, Any]:
  from bigmodel import study as studies
  from bigmodel.report import page

  if not (Path(arguments.workdir) / "study.json").exists():
    raise UserError(f"--workdir: {arguments.workdir} holds no study (no study.json)")
  if arguments.table and not arguments.table.endswith((".csv", ".parquet")):
    raise UserError(f"--table: {arguments.table} ends in neither .csv nor .parquet")
  result = page.write(arguments.workdir, studies.score_study(arguments.workdir), arguments.figures)
  if arguments.table:
    page.write_table(arguments.table, result)
  if not arguments.json:
    plain_console().print(f"report: {Path(arguments.workdir) / 'report.html'}")
  return result
