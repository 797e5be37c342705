"""Verbs of the law lab: fits of anybody's points, forecasts that are sealed and scored, published numbers."""

import datetime
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bigmodel.files import UserError, read_json, write_json
from bigmodel.verbs import Arguments, setup, show_table

CURVES = ("power", "power_offset", "power_shifted", "bnsl1")  # what --law=auto tries, by columns
SURFACES = ("chinchilla", "kaplan_nd", "overtraining")


def fit(arguments: Arguments) -> dict[str, Any]:
  setup()
  if Path(arguments.points).is_dir():
    from bigmodel.sweep import fits

    if not (Path(arguments.points) / "study.json").exists():
      raise UserError(f"{arguments.points} holds no study (no study.json)")
    result = fits.fit_study(arguments.points)
  else:
    result = _fit_points(arguments)
  for law in result["laws"]:
    title = f"{law['name']}, {law.get('points', len(result['laws']))} points"
    title = f"{law['group']}: {title}" if law.get("group") else title
    rows = [
      (name, None if value is None else f"{value:.6g}", law["intervals"].get(name))
      for name, value in law["params"].items()
    ]
    if "objective" in law:
      rows.append(("objective", f"{law['objective']:.6g}", None))
      rows.append(("starts at the optimum", " of ".join(map(str, law["starts_at_optimum"])), None))
    if law.get("backtest"):
      what = f"error on {law['backtest']['points']} points of the largest scales, hidden"
      rows.append((what, f"{law['backtest']['rms_log_error']:.2%}", None))
    show_table(arguments, title, ("parameter", "value", "90% interval"), rows)
    for name in law.get("ridges", ()):
      _say(arguments, f"{name} is on a ridge: three times as much or as little fits nearly as well")
  best = [(o["law"], o["C"], o["N"], o["N_interval90"], o["D"], o["D_interval90"]) for o in result["optimum"]]
  if best:
    show_table(arguments, "compute-optimal", ("law", "C", "N", "90%", "D", "90%"), best)
  for warning in result.get("warnings", ()):
    _say(arguments, f"note: {warning}")
  return result


def _say(arguments: Arguments, text: str) -> None:
  if not arguments.json:
    Console().print(text, highlight=False)


def _named(arguments: Arguments) -> dict[str, str]:
  """The columns that were named, by what laws call them."""
  named = {name: getattr(arguments, name.lower()) for name in ("N", "D", "C", "x") if getattr(arguments, name.lower())}
  for text in arguments.column:
    name, equals, own = text.partition("=")
    if not equals:
      raise UserError(f"--column: {text!r} is not NAME=COLUMN")
    named[name] = own
  return named


def _fit_points(arguments: Arguments) -> dict[str, Any]:
  from bigmodel.laws import forms, points, summary, table

  named = _named(arguments)
  names = arguments.law.split(",") if arguments.law else ["power_offset" if "x" in named else "chinchilla"]
  if names == ["auto"]:
    names = list(CURVES if "x" in named else SURFACES)
  laws = [forms.find(name) for name in names if name != "isoflop"]
  if not arguments.group and names in (["chinchilla"], ["isoflop"]):
    given = points.from_csv(
      arguments.points, arguments.n, arguments.d, arguments.c, arguments.loss, arguments.drop_largest
    )
    facts = summary.fit_points(given, arguments.at) if names == ["chinchilla"] else summary.fit_profiles(given)
    return facts | {"warnings": table.warnings((given.N, given.D), given.loss)}
  if len(laws) < len(names):
    raise UserError("--law: isoflop is fitted alone and without --group")
  if arguments.at or arguments.drop_largest:
    raise UserError("--at, --drop-largest: are for --law=chinchilla or isoflop alone")
  whole = table.read(arguments.points)
  found, warnings = [], []
  for group, part in table.groups(whole, arguments.points, arguments.group).items():
    own = []
    for law in laws:
      prefix = f"{group}: " if group else ""
      columns = table.columns(part, arguments.points, law.columns, named)
      loss = table.column(part, arguments.points, arguments.loss, "--loss")
      try:
        own.append(summary.law_facts(law, [columns[name] for name in law.columns], loss) | {"group": group})
      except UserError as error:
        if arguments.law != "auto":
          raise
        warnings.append(f"{prefix}{error}")
      if law is laws[0]:
        warnings += [prefix + w for w in table.warnings([columns[name] for name in law.columns], loss)]
    hidden = lambda facts: (facts["backtest"] or {"rms_log_error": float("inf")})["rms_log_error"]
    found += sorted(own, key=hidden)  # the best forecaster first
  if not found:
    raise UserError(f"--law=auto: {warnings[0]}")
  return {"laws": found, "optimum": [], "warnings": warnings}


def forecast(arguments: Arguments) -> dict[str, Any]:
  setup()
  from bigmodel.laws import forecast as forecasts

  if arguments.score:
    return _score(arguments)
  if not arguments.at:
    raise UserError("--at: say where: an x, N,D, a budget C, or a CSV of them (repeatable)")
  named = _named(arguments)
  rows = _curve_rows(arguments, named) if "x" in named else _surface_rows(arguments, named)
  scale = "x" if "x" in named else "N"
  keys = (*(("group",) if arguments.group else ()), *(("x",) if scale == "x" else ("N", "D", "C")))
  table = [(*(row[key] for key in keys), row["predicted"], row["interval90"]) for row in rows]
  show_table(arguments, "forecast", (*keys, "loss", "90% interval"), table)
  facts: dict[str, Any] = {"points": str(arguments.points), "points_sha256": _sha256(arguments.points), "rows": rows}
  if arguments.seal:
    if Path(arguments.seal).exists():
      raise UserError(f"--seal: {arguments.seal} is there already; a forecast is kept as it was made")
    facts = forecasts.seal(facts, datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"))
    write_json(arguments.seal, facts)
    _say(arguments, f"sealed: {arguments.seal}  sha256 {facts['sha256'][:16]}")
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
    if len(numbers) not in {1, len(wanted)} or not all(number > 0 for number in numbers):
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
  return rows


def _surface_rows(arguments: Arguments, named: dict[str, str]) -> list[dict[str, Any]]:
  import numpy as np

  from bigmodel.laws import chinchilla, curves, points, summary
  from bigmodel.laws import forecast as forecasts

  if arguments.group:
    raise UserError("--group: is for curves (--x)")
  given = points.from_csv(
    arguments.points, arguments.n, arguments.d, arguments.c, arguments.loss, arguments.drop_largest
  )
  fitted = chinchilla.fit(given)
  known, each = forecasts.spread(fitted), summary.flops_per_nd(fitted)
  if not known.origins:
    _say(
      arguments, "note: too few points below half of the largest C to measure how errors grow: intervals hold near them"
    )
  rows = []
  for asked in _asked(arguments, ("N", "D"), named):
    N, D = fitted.optimum(asked["C"], each) if "C" in asked else (asked["N"], asked["D"])
    row: dict[str, Any] = {"group": "", "N": float(N), "D": float(D), "C": float(each * N * D)}
    for q in curves.LEVELS:
      said = forecasts.at(fitted, known, *(np.array([v]) for v in (N, D, each * N * D)), level=q)
      row |= {"predicted": float(said["predicted"][0])}
      row[f"interval{q * 100:.0f}"] = [float(said["low"][0]), float(said["high"][0])]
    rows.append(row)
  return rows


def _score(arguments: Arguments) -> dict[str, Any]:
  """Sealed forecasts beside the truth of a CSV, and what their intervals cover: a ledger."""
  import math

  import numpy as np

  from bigmodel.laws import forecast as forecasts
  from bigmodel.laws import table

  named = _named(arguments)
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


def compare(arguments: Arguments) -> dict[str, Any]:
  setup()
  from bigmodel.laws import compare as comparison

  a, b = (_points_of(arguments, path) for path in (arguments.a, arguments.b))
  result = comparison.compare(a, b)
  rows = [
    (row["C"], row["loss_a"], row["loss_b"], row["multiplier"], row["interval90"], "yes" if row["beyond"] else "")
    for row in result["rows"]
  ]
  title = f"A {arguments.a}, B {arguments.b}: loss at the best size, and B's compute in A's terms"
  show_table(arguments, title, ("C", "A", "B", "multiplier", "90% interval", "beyond the runs"), rows)
  crossing = result["crossing"]
  if crossing["interval90"]:
    at = "none" if crossing["C"] is None else f"{crossing['C']:.3g}"
    low, high = crossing["interval90"]
    share = crossing["share_of_draws"]
    _say(arguments, f"they cross at {at} FLOPs ({low:.3g} to {high:.3g}, in {share:.0%} of the resamples)")
  _say(arguments, result["verdict"])
  return result


def _points_of(arguments: Arguments, path: str) -> Any:
  """The points of a CSV, or of the fitted runs of a study's folder."""
  from bigmodel.laws import points
  from bigmodel.sweep import folder

  if not Path(path).is_dir():
    return points.from_csv(path, arguments.n, arguments.d, arguments.c, arguments.loss, arguments.drop_largest)
  if not (Path(path) / "study.json").exists():
    raise UserError(f"{path} holds no study (no study.json)")
  return points.from_records(folder.of_role(path, "fit"), read_json(Path(path) / "study.json")["convention"])


def reproduce(arguments: Arguments) -> dict[str, Any]:
  setup()
  from bigmodel.laws import reproduce as papers

  claim, results = papers.run(arguments.name, arguments.data)
  _say(arguments, claim.rsplit("\n\n", 1)[0])
  show = lambda value: None if value is None else f"{value:.6g}"
  rows = [(r.what, show(r.published), show(r.ours), r.verdict) for r in results]
  show_table(arguments, arguments.name, ("what", "published", "ours", "verdict"), rows)
  facts = [{"what": r.what, "published": r.published, "ours": r.ours, "verdict": r.verdict} for r in results]
  return {"name": arguments.name, "claim": claim, "results": facts}
