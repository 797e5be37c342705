"""Verbs that look ahead: forecasts that are sealed and scored, optima under limits, the next run."""

import datetime
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bigmodel.files import UserError, read_json, write_json
from bigmodel.lab import named_columns, points_of, say
from bigmodel.verbs import Arguments, setup, show_table


def forecast(arguments: Arguments) -> dict[str, Any]:
  setup()
  from bigmodel.laws import curves, seals

  if arguments.score:
    return _score(arguments)
  if not arguments.at and not arguments.reach:
    raise UserError("--at: say where: an x, N,D, a budget C, or a CSV of them (repeatable); or --reach=LOSS")
  named = named_columns(arguments)
  if "x" in named:
    if arguments.law or arguments.reach or _limits(arguments) or arguments.intervals != "bootstrap":
      raise UserError("--law, --reach, --max-params, --max-tokens, --served, --intervals: are for N and D, not for --x")
    found = {"forecaster": curves.facts(), "rows": _curve_rows(arguments, named)}
  else:
    found = _surface(arguments, named)
  facts: dict[str, Any] = {"points": str(arguments.points), "points_sha256": _sha256(arguments.points), **found}
  if arguments.seal:
    if Path(arguments.seal).exists():
      raise UserError(f"--seal: {arguments.seal} is there already; a forecast is kept as it was made")
    facts = seals.seal(facts, datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"))
    write_json(arguments.seal, facts)
    say(arguments, f"sealed: {arguments.seal}  sha256 {facts['sha256'][:16]}")
  return facts


def _sha256(path: str) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _asked(arguments: Arguments, wanted: Sequence[str], named: dict[str, str]) -> list[dict[str, Any]]:
  """Rows of what --at says: the wanted scales, or C alone where one number is given for two; and a CSV's groups."""
  from bigmodel.laws import table

  rows = []
  for text in arguments.at:
    if Path(text).suffix == ".csv":
      given = table.read(text)
      read = table.columns(given, text, wanted, named)
      groups = given[arguments.group].to_list() if arguments.group in given.columns else [None] * len(given)
      rows += [
        {"group": None if g is None else str(g), **{n: float(read[n][i]) for n in wanted}} for i, g in enumerate(groups)
      ]
      continue
    try:
      numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
      raise UserError(f"--at: {text!r} is neither numbers nor a CSV") from error
    if len(numbers) not in {1, len(wanted)} or not all(0 < number < math.inf for number in numbers):
      raise UserError(f"--at: {text!r} is not {'a positive number' if len(wanted) == 1 else 'N,D or a budget C'}")
    names = wanted if len(numbers) == len(wanted) else ("C",)
    rows.append({"group": None, **dict(zip(names, numbers, strict=True))})
  return rows


def _curve_rows(arguments: Arguments, named: dict[str, str]) -> list[dict[str, Any]]:
  if arguments.drop_largest:
    raise UserError("--drop-largest: is for --n, --d, --c")
  from bigmodel.laws import curves, table

  groups = table.groups(table.read(arguments.points), arguments.points, arguments.group)
  data = {
    group: (
      table.column(part, arguments.points, named["x"], "--x"),
      table.column(part, arguments.points, arguments.loss, "--loss"),
    )
    for group, part in groups.items()
  }
  rows = curves.rows(data, [(asked["group"], asked["x"]) for asked in _asked(arguments, ("x",), named)])
  keys = (*(("group",) if arguments.group else ()), "x")
  show = [(*(row[key] for key in keys), row["predicted"], row["interval90"]) for row in rows]
  show_table(arguments, "forecast", (*keys, "loss", "90% interval"), show)
  return rows


def _limits(arguments: Arguments) -> dict[str, float]:
  given = {"params": arguments.max_params, "tokens": arguments.max_tokens, "served": arguments.served}
  flags = {"params": "--max-params", "tokens": "--max-tokens", "served": "--served"}
  for name, value in given.items():
    if value is not None and not 0 < value < math.inf:
      raise UserError(f"{flags[name]}: {value:g} is not a positive number")
  return {name: value for name, value in given.items() if value is not None}


def _surface(arguments: Arguments, named: dict[str, str]) -> dict[str, Any]:
  from bigmodel.laws import forecast as forecasts
  from bigmodel.laws import optimum, summary

  if arguments.group:
    raise UserError("--group: is for curves (--x)")
  forecaster, fitted = _fitted(arguments)
  limits = optimum.Limits(**_limits(arguments))
  asked = _asked(arguments, ("N", "D"), named)
  # What a budget buys is a question to Chinchilla's law, whichever law forecasts the loss.
  optima = [optimum.at(fitted, one["C"], limits) if "C" in one else None for one in asked]
  sizes = [(best["N"], best["D"]) if best else (one["N"], one["D"]) for one, best in zip(asked, optima, strict=True)]
  places = [forecasts.Scale(N, D, summary.flops_per_nd(fitted) * N * D) for N, D in sizes]
  rows = forecasts.rows(places, _predictor(arguments, forecaster)) if places else []
  show = [(row["N"], row["D"], row["C"], row["predicted"], row["interval90"]) for row in rows]
  if show:
    show_table(arguments, "forecast", ("N", "D", "C", "loss", "90% interval"), show)
  found = [best for best in optima if best]
  for row, best in zip(rows, optima, strict=True):
    row |= {name: best[name] for name in ("N_interval90", "D_interval90", "off")} if best else {}
  if found:
    show = [(o["C"], o["N"], o["N_interval90"], o["D"], o["D_interval90"], f"{o['spent'] / o['C']:.0%}") for o in found]
    show_table(arguments, "compute-optimal", ("C", "N", "90%", "D", "90%", "of C spent"), show)
    off = [(o["C"], f"{f['times']:g} x", f["N"], f["D"], f["loss"] - o["loss"], f"{f['compute']:.1%}")
           for o in found for f in o["off"]]  # fmt: skip
    show_table(arguments, "off the optimum", ("C", "size", "N", "D", "more loss", "as good as this much of C"), off)
  reached = [optimum.least(fitted, loss, limits) for loss in arguments.reach]
  if reached:
    show = [(r["loss"], r["C"], r["C_interval90"], r["N"], r["D"], f"{r['reached_in']:.0%}") for r in reached]
    show_table(arguments, "least compute to a loss", ("loss", "C", "90%", "N", "D", "reached in, of the draws"), show)
  return {"forecaster": forecaster.facts(), "rows": rows, "optimum": found, "reached": reached}


def _fitted(arguments: Arguments) -> tuple[Any, Any]:
  """(forecaster, Chinchilla's law), fitted to the points."""
  from bigmodel.laws import chinchilla
  from bigmodel.laws import forecast as forecasts

  points = points_of(arguments, arguments.points, arguments.n)
  names = arguments.law.split(",") if getattr(arguments, "law", "") else []
  if getattr(arguments, "intervals", "") == "nuts":
    if len(names) > 1:
      raise UserError("--intervals=nuts: is for one law")
    names = names or [forecasts.LAWS[0]]
  forecaster = forecasts.fit(points, forecasts.find_laws(names, "--law"))
  if not forecaster.spread.origins:
    say(
      arguments,
      f"note: too few points below half of the largest C to measure how errors grow with distance: taken to be"
      f" {forecasts.DISCREPANCY:.0%} for each unit of ln C",
    )
  known = next((fit for fit in forecaster.fits if fit.law is chinchilla.LAW), None)
  return forecaster, chinchilla.Fit(points, known) if known else chinchilla.fit(points)


def _predictor(arguments: Arguments, forecaster: Any) -> Callable[..., Any]:
  """What predicts losses at each (N, D, C) and level: the forecaster, or a posterior of its law."""
  if arguments.intervals != "nuts":
    return forecaster.predict
  from bigmodel.laws import bayes

  posterior = bayes.sample(forecaster.fits[0])
  say(arguments, f"NUTS: {posterior.divergences} divergences, R-hat {posterior.r_hat:.3f}")
  return lambda N, D, C, level: posterior.predict(N, D, forecaster.spread, level)


def _score(arguments: Arguments) -> dict[str, Any]:
  """Sealed forecasts beside the truth of a CSV, and what their intervals cover: a ledger."""
  from bigmodel.laws import seals

  named = named_columns(arguments)
  scales = ("x",) if "x" in named else ("N", "D")
  truth = seals.read_truth(arguments.points, scales, named, arguments.loss, arguments.group)
  sealed = [seals.verify(read_json(path), path) for path in arguments.score]
  ledger = seals.ledger(sealed, truth, scales)
  if not ledger:
    raise UserError(f"--score: {arguments.points} has the truth of none of these forecasts (same columns and scales?)")
  covered = seals.coverage(ledger)
  rows = [
    (row["group"] or "-", row.get("x", row.get("N")), row["predicted"], row["interval90"], row["actual"],
     bool(row["inside"]["interval90"])) for row in ledger
  ]  # fmt: skip
  show_table(arguments, "forecast and truth", ("group", "scale", "forecast", "90% interval", "truth", "inside"), rows)
  show_table(arguments, f"{len(ledger)} forecasts", ("interval", "covered"), list(covered.items()))
  return {"rows": ledger, "coverage": covered}


def design(arguments: Arguments) -> dict[str, Any]:
  setup()
  from bigmodel.laws import design as designs

  forecaster, fitted = _fitted(arguments)
  cap = arguments.cap or arguments.target / 10
  for flag, value in (("--target", arguments.target), ("--cap", cap)):
    if not 0 < value < math.inf:
      raise UserError(f"{flag}: {value:g} is not a positive number of FLOPs")
  facts = designs.design(fitted, forecaster, arguments.target, cap)
  rows = [
    (row["C"], row["N"], row["D"], f"{row['reduction']:.1%}", row["reduction_per_flop"],
     "the most for its compute" if row == facts["next"] else "") for row in facts["candidates"]
  ]  # fmt: skip
  title = f"one more run, for the forecast at {arguments.target:.3g} FLOPs (loss {facts['predicted']:.4f})"
  show_table(arguments, title, ("C", "N", "D", "less variance", "per FLOP", ""), rows)
  parts = ", ".join(f"{name} {value:.2%}" for name, value in facts["parts"].items())
  say(arguments, f"standard deviation of that forecast: {facts['sd']:.2%} ({parts}); of one run {facts['noise']:.2%}")
  if facts["next"] is None:
    say(arguments, f"no run of up to {cap:.3g} FLOPs takes {designs.WORTH:.0%} off the variance: raise --cap")
  rows = [(e["C"], e["smallest"], e["largest"], e["N"], "" if e["inside"] else "not inside") for e in facts["edges"]]
  if rows:
    show_table(arguments, "minima of the budgets so far", ("C", "smallest N", "largest N", "minimum", ""), rows)
  return facts
