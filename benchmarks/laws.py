"""Compares fitting Chinchilla's law with scipy: 4,500 starts and bootstrap refits on the points of Epoch's refit.

    python benchmarks/laws.py [--json] [--scipy-starts 90] [--scipy-refits 40]    (needs the published points)

scipy's BFGS with analytic gradients runs a sample of starts and refits; its time is scaled up to all of them.
"""

import argparse
import json
import time
from typing import Any

import numpy as np


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--json", action="store_true")
  parser.add_argument("--scipy-starts", type=int, default=90)
  parser.add_argument("--scipy-refits", type=int, default=40)
  arguments = parser.parse_args()

  from bigmodel.laws import chinchilla, points, reproduce, uncertainty
  from bigmodel.laws.source import Source

  path = str(reproduce.data_folder() / "epoch" / "svg_extracted_data.csv")
  runs = points.from_csv(Source(path, {"N": "Model Size", "C": "Training FLOP"}, drop_largest=5))
  results: dict[str, Any] = {}

  def timed(name: str, work: Any) -> Any:
    began = time.perf_counter()
    result = work()
    results[name] = time.perf_counter() - began
    return result

  fit = timed("4,500 starts, cold", lambda: chinchilla.fit(runs, 0, starts=chinchilla.STARTS))
  timed("4,500 starts, warm", lambda: chinchilla.fit(runs, 0, starts=chinchilla.STARTS))
  results["share of starts at the optimum"] = fit.base.reached / fit.base.starts
  timed("4,000 refits", lambda: uncertainty.bootstrap(fit.base, 4000))
  data = np.log(runs.N), np.log(runs.D), np.log(runs.loss)
  rng = np.random.default_rng(0)
  some = chinchilla.GRID[rng.choice(len(chinchilla.GRID), arguments.scipy_starts, replace=False)]
  ones = np.ones(len(runs))
  values = timed("scipy", lambda: [scipy_fit(start, *data, ones).fun for start in some])
  results["scipy, 4,500 starts"] = results.pop("scipy") * len(chinchilla.GRID) / len(some)
  best = fit.base.objective * 1e3
  results["scipy, share of starts at the optimum"] = float(np.mean(np.array(values) < best * (1 + 1e-5)))
  weights = rng.exponential(size=(arguments.scipy_refits, len(runs)))
  timed("scipy", lambda: [scipy_fit(fit.theta, *data, w) for w in weights])
  results["scipy, 4,000 refits"] = results.pop("scipy") * 4000 / len(weights)
  if arguments.json:
    print(json.dumps(results))
    return
  for name, value in results.items():
    print(f"{name:38s} {value:8.3g}" + ("" if "share" in name else " s"))


def scipy_fit(start: np.ndarray, log_n: np.ndarray, log_d: np.ndarray, log_l: np.ndarray, weights: np.ndarray) -> Any:
  from scipy.optimize import minimize
  from scipy.special import logsumexp

  def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
    log_a, log_b, log_e, alpha, beta = theta
    terms = np.stack([log_a - alpha * log_n, log_b - beta * log_d, np.full_like(log_n, log_e)])
    expected = logsumexp(terms, axis=0)
    share = np.exp(terms - expected)
    residual = expected - log_l
    size, delta = np.abs(residual), 1e-3
    value = np.sum(weights * np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta)))
    slope = weights * np.clip(residual, -delta, delta)
    gradient = [*(share @ slope), -(slope @ (share[0] * log_n)), -(slope @ (share[1] * log_d))]
    return 1e3 * value, 1e3 * np.array(gradient)

  return minimize(objective, start, jac=True, method="BFGS")


if __name__ == "__main__":
  main()
