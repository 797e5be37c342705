"""Verbs that look ahead: forecasts that are sealed and scored, optima under limits, the next run."""

import datetime
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigmodel.errors import UserError
from bigmodel.files import read_json, write_json
from bigmodel.lab import named_columns, points_of, say
from bigmodel.verbs import Arguments, setup, show_table


def forecast(arguments: Arguments) -> dict[str, Any]:
  setup()
  from bigmodel.laws import forecast as forecasts

  if arguments.score:
    return _score(arguments)
  if not arguments.at and not arguments.reach:
    raise UserError("--at: say where: an x, N,D, a budget C, or a CSV of them (repeatable); or --reach=LOSS")
  named = named_columns(arguments)
  if "x" in named:
    if arguments.law or arguments.reach or _limits(arguments) or arguments.intervals != "bootstrap":
      raise UserError("--law, --reach, --max-params, --max-tokens, --served, --intervals: are for N and D, not for --x")
    found = {"rows": _curve_rows(arguments, named)}
  else:
    found = _surface(arguments, named)
  facts: dict[str, Any] = {"points": str(arguments.points), "points_sha256": _sha256(arguments.points), **found}
  if arguments.seal:
    if Path(arguments.seal).exists():
      raise UserError(f"--seal: {arguments.seal} is there already; a forecast is kept as it was made")
    facts = forecasts.seal(facts, datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"))
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
  read = lambda part, name, flag: table.column(part, arguments.points, name, flag)
  data = {
    group: (read(part, named["x"], "--x"), read(part, arguments.loss, "--loss")) for group, part in groups.items()
  }
  multiples = curves.calibrated(data)
  fitted = {curve.name: curve for curve in curves.fit(data)}
  rows = []
  for asked in _asked(arguments, ("x",), named):
    if asked["group"] is not None and asked["group"] not in fitted:
      raise UserError(f"--at: no group {asked['group']!r} among the points; they have {', '.join(fitted)}")
    for group in fitted if asked["group"] is None else [asked["group"]]:
      x = asked["x"]
      said = fitted[group].predict(x, multiples)
      intervals = {f"interval{q * 100:.0f}": [float(v) for v in pair] for q, pair in said["intervals"].items()}
      rows.append({"group": group, "x": x, "predicted": float(said["predicted"]), **intervals})
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
  from bigmodel.laws import optimum

  if arguments.group:
    raise UserError("--group: is for curves (--x)")
  given, fitted = _fitted(arguments)
  limits = optimum.Limits(**_limits(arguments))
  asked = _asked(arguments, ("N", "D"), named)
  # What a budget buys is a question to Chinchilla's law, whichever law forecasts the loss.
  optima = [optimum.at(fitted, one["C"], limits) if "C" in one else None for one in asked]
  places = [(best["N"], best["D"]) if best else (one["N"], one["D"]) for one, best in zip(asked, optima, strict=True)]
  rows = _predictions(arguments, given, fitted, places) if places else []
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
  return {"rows": rows, "optimum": found, "reached": reached}


def _fitted(arguments: Arguments) -> tuple[Any, Any]:
  from bigmodel.laws import chinchilla

  given = points_of(arguments, arguments.points, arguments.n)
  return given, chinchilla.fit(given)


def _predictions(arguments: Arguments, given: Any, fitted: Any, places: Sequence[tuple[float, float]]) -> list[dict]:
  """Forecasts at each (N, D), with intervals at all levels."""
  import numpy as np

  from bigmodel.laws import bayes, curves, fitting, forms, summary, uncertainty
  from bigmodel.laws import forecast as forecasts

  names = arguments.law.split(",") if arguments.law else list(forecasts.MIXED)
  laws = [forms.find(name) for name in (names[:1] if arguments.intervals == "nuts" and not arguments.law else names)]
  for law in laws:
    if law.columns != ("N", "D"):
      raise UserError(f"--law: forecasts are of laws of N and D; {law.name} is one of {', '.join(law.columns)}")
  fits = [
    fitted.known if law.name == "chinchilla"
    else uncertainty.bootstrap(fitting.fit(law, (given.N, given.D), given.loss, given.weights)) for law in laws
  ]  # fmt: skip
  mixture = forecasts.mixture(*fits)
  if not mixture.spread.origins:
    say(arguments, "note: too few points below half of the largest C to tell how errors grow: intervals hold near them")
  columns = list(np.array(places).T)
  if arguments.intervals == "nuts":
    if len(fits) > 1:
      raise UserError("--intervals=nuts: is for one law")
    posterior = bayes.sample(fits[0])
    say(arguments, f"NUTS: {posterior.divergences} divergences, R-hat {posterior.r_hat:.3f}")
    ask = lambda q: posterior.predict(columns, mixture.spread, q)
  else:
    ask = lambda q: mixture.at(columns, q)
  said, k = {q: ask(q) for q in curves.LEVELS}, summary.flops_per_nd(fitted)
  return [
    {
      "group": "", "N": float(N), "D": float(D), "C": float(k * N * D), "predicted": float(said[0.9]["predicted"][i]),
      **{f"interval{q * 100:.0f}": [float(own["low"][i]), float(own["high"][i])] for q, own in said.items()},
    }
    for i, (N, D) in enumerate(places)
  ]  # fmt: skip


def _score(arguments: Arguments) -> dict[str, Any]:
  """Sealed forecasts beside the truth of a CSV, and what their intervals cover: a ledger."""
  import numpy as np

  from bigmodel.laws import forecast as forecasts
  from bigmodel.laws import table

  named = named_columns(arguments)
  scales = ("x",) if "x" in named else ("N", "D")
  whole = table.read(arguments.points)
  truth: dict[tuple, list[float]] = {}
  # To nine digits: what follows from C = 6 N D is rounded.
  digits = lambda group, values: (group, *(f"{value:.9g}" for value in values))
  for group, part in table.groups(whole, arguments.points, arguments.group).items():
    columns = table.columns(part, arguments.points, scales, named)
    losses = table.column(part, arguments.points, arguments.loss, "--loss")
    for *values, y in zip(*(columns[name] for name in scales), losses, strict=True):
      truth.setdefault(digits(group, values), []).append(float(y))
  ledger = []
  for path in arguments.score:
    sealed = forecasts.verify(read_json(path), path)
    for row in sealed["rows"]:
      if not all(name in row for name in scales):
        continue
      actual = np.mean(truth.get(digits(row["group"], (row[name] for name in scales)), [np.nan]))  # of repeats
      if np.isnan(actual):
        continue
      actual = float(actual)
      inside = {name: row[name][0] <= actual <= row[name][1] for name in row if name.startswith("interval")}
      ledger.append({**row, "sealed_at": sealed["sealed_at"], "actual": actual, "inside": inside,
                     "log_error": math.log(actual / row["predicted"])})  # fmt: skip
  if not ledger:
    raise UserError(f"--score: {arguments.points} has the truth of none of these forecasts (same columns and scales?)")
  levels = sorted(ledger[0]["inside"])
  covered = {name: sum(row["inside"][name] for row in ledger) / len(ledger) for name in levels}
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
  from bigmodel.laws import forecast as forecasts

  _, fitted = _fitted(arguments)
  cap = arguments.cap or arguments.target / 10
  for flag, value in (("--target", arguments.target), ("--cap", cap)):
    if not 0 < value < math.inf:
      raise UserError(f"{flag}: {value:g} is not a positive number of FLOPs")
  facts = designs.design(fitted, forecasts.spread(fitted.known), arguments.target, cap)
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
