"""What is known of a set of records: laws, optima, noise floor and learning-rate scans, as plain data."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigmodel.accounting import params_of
from bigmodel.errors import UserError
from bigmodel.files import sha256_text
from bigmodel.laws import chinchilla, fitting, forecast, isoflop, uncertainty
from bigmodel.laws.forms import Law
from bigmodel.laws.points import Points, from_records
from bigmodel.record import Record

FAR = 10.0  # times beyond the sizes that were run, where a law's optimum says no more than that it lies there
MANY, FEW = 10, 5  # budgets whose optimum is told
VERSION = 7  # of this summary: a new one fits anew


def inputs_sha256(records: Sequence[Record], laws: Sequence[str], convention: str) -> str:
  """Identity of what a fit was made from."""
  results = sorted(record.result_sha256 for record in records)
  files = [Path(path).read_text() for path, colon, _ in (name.rpartition(":") for name in laws) if colon]
  return sha256_text(f"{VERSION} {list(laws)} {files or ''} {convention} {results}")


def fit(records: Sequence[Record], laws: Sequence[str], convention: str, target_flops: float | None) -> dict[str, Any]:
  """Fits every law to the finished records; `optimum` has each budget's and the target's."""
  points = from_records(records, convention)
  fitted: list[dict[str, Any]] = []
  optimum: list[dict[str, Any]] = []
  if "chinchilla" in laws:
    chinchilla_fit = chinchilla.fit(points)
    fitted.append(chinchilla_facts(chinchilla_fit) | {"other_conventions": _other_conventions(records, convention)})
    budgets = np.unique(points.budgets())
    if len(budgets) > MANY:  # no isoFLOP design: a few of the range say as much
      budgets = np.geomspace(budgets[0], budgets[-1], FEW)
    budgets = {*budgets, *([target_flops] if target_flops else [])}
    optimum += [chinchilla_optimum(chinchilla_fit, float(C)) for C in sorted(budgets)]
  elif target_flops and laws != ["isoflop"]:
    optimum.append(chinchilla_optimum(chinchilla.fit(points), target_flops))  # whichever law forecasts the loss
  others = [name for name in laws if name not in ("chinchilla", "isoflop")]
  for law in forecast.find_laws(others, "get_study: laws"):
    law_fit = uncertainty.bootstrap(fitting.fit(law, [getattr(points, name) for name in law.columns], points.loss))
    fitted.append(fit_facts(law_fit) | {"convention": convention})
  if "isoflop" in laws:
    isoflop_fit = isoflop.fit(points)
    fitted.append(isoflop_facts(isoflop_fit, convention))
    optimum += isoflop_optima(isoflop_fit)
  return plain({"laws": fitted, "optimum": optimum, "points": len(points), "convention": convention})


def chinchilla_facts(fit_: chinchilla.Fit) -> dict[str, Any]:
  """One entry of report.json's `laws`."""
  return {
    "name": "chinchilla",
    "convention": fit_.points.convention,
    "params": fit_.params,
    "intervals": fit_.intervals(),
    "objective": fit_.known.objective,
    "flops_per_nd": flops_per_nd(fit_),
    "points": len(fit_.points),
    "payoff": payoff(fit_),
    "starts_at_optimum": [fit_.known.reached, fit_.known.starts],
    "r2_largest_budget_left_out": chinchilla.r2_left_out(fit_.points),
  }


def law_facts(
  law: Law, columns: Sequence[np.ndarray], loss: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, Any]:
  """One entry of `laws` for any law of a CSV: `fit_facts`, ridges and a backtest."""
  how = fitting.Loss("squares", 1.0) if law.plain else fitting.Loss()
  fit_ = uncertainty.bootstrap(fitting.fit(law, columns, loss, weights, how))
  ridges = uncertainty.ridges(fit_)
  return plain(fit_facts(fit_) | {"ridges": ridges, "backtest": backtest(law, columns, loss, how, weights)})


def fit_facts(fit_: fitting.Fit) -> dict[str, Any]:
  """Parameters of a fit with draws, their intervals, and how well it converged."""
  return {
    "name": fit_.law.name,
    "source": fit_.law.source,
    "params": fit_.params,
    "intervals": fit_.intervals(),
    "objective": fit_.objective,
    "points": len(fit_.loss),
    "starts_at_optimum": [fit_.reached, fit_.starts],
  }


def backtest(
  law: Law,
  columns: Sequence[np.ndarray],
  loss: np.ndarray,
  how: fitting.Loss,
  weights: np.ndarray | None = None,
  factor: float = 4.0,
) -> dict[str, Any] | None:
  """The law fitted without the points within `factor` of the largest scale, asked about them."""
  scale = np.prod([np.asarray(x, np.float64) for x in columns if len(np.unique(x)) > 1], axis=0)
  hidden = scale > scale.max() / factor
  if (~hidden).sum() <= len(law.names) + 1 or law.plain:
    return None
  if any(len(np.unique(x[~hidden])) == 1 for x in columns):
    return None
  own = None if weights is None else weights[~hidden]
  below = fitting.fit(law, [x[~hidden] for x in columns], loss[~hidden], own, how)
  error = np.log(loss[hidden] / below.predict(*(x[hidden] for x in columns)))
  return {
    "points": int(hidden.sum()),
    "rms_log_error": float(np.sqrt(np.mean(error**2))),
    "mean_log_error": float(np.mean(error)),
  }


def payoff(fit_: chinchilla.Fit) -> list[dict[str, Any]]:
  """What doubling the model or the data of the largest run would change, with 90% bootstrap intervals."""
  largest = int(np.argmax(fit_.points.C))
  N, D = float(fit_.points.N[largest]), float(fit_.points.D[largest])
  thetas = np.vstack([fit_.theta, fit_.draws])
  loss = lambda n, d: np.array([np.exp(chinchilla.log_loss(t, np.log(n), np.log(d))) for t in thetas])
  rows = []
  for what, n, d in (("a model twice as large", 2 * N, D), ("twice the data", N, 2 * D)):
    change = loss(n, d) - loss(N, D)
    low, high = np.quantile(change[1:], [0.05, 0.95])
    rows.append({"what": what, "N": n, "D": d, "change": float(change[0]), "interval90": [float(low), float(high)]})
  return rows


def flops_per_nd(fit_: chinchilla.Fit) -> float:
  """C over N D of the fitted runs: 6 under `flops_6nd`, its mean under conventions that count otherwise."""
  points = fit_.points
  return float(np.exp(np.mean(np.log(points.C) - np.log(points.N) - np.log(points.D))))


def chinchilla_optimum(fit_: chinchilla.Fit, C: float) -> dict[str, Any]:
  """Compute-optimal N, D and loss at C, with 90% bootstrap intervals."""
  k = flops_per_nd(fit_)
  N, D = fit_.optimum(C, k)
  draws = np.array([fit_.optimum(C, k, theta) for theta in fit_.draws if theta[3] > 0 and theta[4] > 0])
  interval = lambda x: [float(v) for v in np.quantile(x[np.isfinite(x)], [0.05, 0.95])]
  return {
    "law": "chinchilla",
    "C": C,
    "N": N,
    "D": D,
    "N_interval90": interval(draws[:, 0]),
    "D_interval90": interval(draws[:, 1]),
    "loss": float(fit_.predict(N, D)),
    "inside": bool(fit_.points.N.min() / FAR < N < fit_.points.N.max() * FAR),
  }


def isoflop_facts(fit_: isoflop.Fit, convention: str) -> dict[str, Any]:
  return {
    "name": "isoflop",
    "convention": convention,
    "params": fit_.params,
    "intervals": fit_.intervals,
    "points": fit_.points,
    "caution": fit_.caution,
    "profiles": [{"C": p.C, "coefficients": p.coefficients, "inside": p.inside} for p in fit_.profiles],
  }


def isoflop_optima(fit_: isoflop.Fit) -> list[dict[str, Any]]:
  """The minimum of every budget that has one."""
  names = ("C", "N", "D", "N_interval90", "D_interval90", "loss", "inside")
  return [
    {"law": "isoflop", **{name: getattr(profile, name) for name in names}}
    for profile in fit_.profiles
    if math.isfinite(profile.N)
  ]


def _other_conventions(records: Sequence[Record], convention: str) -> dict[str, Any]:
  """The law under the other way of counting parameters; FLOPs do not enter it."""
  other = "flops_6nd" if params_of(convention) == "params_non_embedding" else "flops_6nd_non_embedding"
  fit_ = chinchilla.fit(from_records(records, other), bootstraps=0)
  return {params_of(other): fit_.params}


def noise_floor(records: Sequence[Record]) -> dict[str, Any] | None:
  """The spread of the loss between runs that differ in their seeds only."""
  losses = [record.loss for record in records if record.finished]
  if len(losses) < 2:
    return None
  return {"std": float(np.std(losses, ddof=1)), "losses": losses, "runs": len(losses)}


def scan(records: Sequence[Record], rule: float) -> dict[str, Any]:
  """One learning-rate scan: losses by rate, the best, and whether rule and best lie at an edge."""
  rows = sorted((record.learning_rate, record.loss) for record in records if record.finished)
  rates = [rate for rate, _ in rows]
  best = min(rows, key=lambda row: row[1])[0] if rows else math.nan
  return plain(
    {
      "N": records[0].params_total,
      "D": max(record.tokens for record in records),
      "rates": rates,
      "losses": [loss for _, loss in rows],
      "rule": rule,
      "best": best,
      "at_edge": bool(rows) and best in (rates[0], rates[-1]),
      "rule_excess": dict(rows).get(rule, math.nan) - min((loss for _, loss in rows), default=math.nan),
      "without_loss": len(records) - len(rows),
    }
  )


def optimum_at(fits: dict[str, Any], C: float) -> float:
  """The compute-optimal N at C: by the isoFLOP minima where there are two inside, else by Chinchilla's law."""
  inside = [o for o in fits["optimum"] if o["law"] == "isoflop" and o["inside"]]
  if len(inside) >= 2:
    slope, intercept = np.polyfit(np.log([o["C"] for o in inside]), np.log([o["N"] for o in inside]), 1)
    return float(np.exp(slope * np.log(C) + intercept))
  by_law = [o["N"] for o in fits["optimum"] if o["law"] == "chinchilla" and o["C"] == C]
  if not by_law:
    raise UserError(f"no optimum is known at {C:g} FLOPs: fewer than two budgets have a minimum within their sizes")
  return by_law[0]


def make_forecast(
  records: Sequence[Record],
  laws: Sequence[str],
  convention: str,
  target: forecast.Scale,
  noise: dict[str, Any] | None,
) -> dict[str, Any]:
  """The loss that the forecaster expects of the target, with its interval and what that is made of.

  It combines those of a study's `laws` that have a value at any size and budget, or `forecast.LAWS` if there are none.
  `noise` is the study's noise floor.
  """
  points = from_records(records, convention)
  found = forecast.find_laws([name for name in laws if name != "isoflop"], "get_study: laws")
  seed_noise = noise["std"] / float(np.mean(noise["losses"])) if noise else 0.0
  forecaster = forecast.fit(points, found, seed_noise)
  prediction = forecaster.predict([target.N], [target.D], [target.C])
  return plain(
    {
      "forecaster": forecaster.facts(),
      "convention": convention,
      "predicted": prediction.predicted[0],
      "interval90": [prediction.low[0], prediction.high[0]],
      "parts": {
        "parameters": prediction.parameters[0],
        "discrepancy": prediction.discrepancy[0],
        "noise": prediction.noise,
        "distance": prediction.distance[0],
      },
    }
  )


def fit_points(points: Points, at: Sequence[float] = (), others: dict[str, Points] | None = None) -> dict[str, Any]:
  """`bigmodel fit`: the law of anybody's points and its optimum at the budgets that are asked for.

  `others` are the same runs with parameters counted otherwise.
  """
  for C in at:
    if not C > 0:
      raise UserError(f"--at: {C:g} is not a positive number of FLOPs")
  fit_ = chinchilla.fit(points)
  again = {name: chinchilla.fit(own, bootstraps=0).params for name, own in (others or {}).items()}
  facts = chinchilla_facts(fit_) | ({"other_conventions": again} if again else {})
  return plain({"laws": [facts], "optimum": [chinchilla_optimum(fit_, C) for C in at]})


def fit_profiles(points: Points) -> dict[str, Any]:
  """`bigmodel fit --law=isoflop`."""
  fit_ = isoflop.fit(points)
  if not fit_.profiles:
    raise UserError(
      f"law isoflop: a parabola needs {isoflop.LEAST} points of one budget; no budget of these {len(points)} has them"
    )
  return plain({"laws": [isoflop_facts(fit_, points.convention)], "optimum": isoflop_optima(fit_)})


def plain(value: Any) -> Any:
  """JSON types only; numbers that are not finite become None."""
  if isinstance(value, dict):
    return {key: plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [plain(item) for item in value]
  if isinstance(value, bool | np.bool_):
    return bool(value)
  if isinstance(value, float | np.floating):
    return float(value) if math.isfinite(value) else None
  if isinstance(value, np.integer):
    return int(value)
  return value
