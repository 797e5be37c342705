"""Does Chinchilla's law fit Chinchilla's points?

Claim (Besiroglu et al. 2024): the parameters that Hoffmann et al. 2022 published do not fit the points of their own
figure. The best fit has a larger irreducible loss and nearly equal exponents. The original fit averaged Huber's loss
over points, which made it so small that the optimiser stopped early, and its parameters were rounded.

Method: the law is fitted to the same points and compared with the published refit.

    bigmodel reproduce chinchilla_refit
"""

from pathlib import Path

import numpy as np

from bigmodel.laws import chinchilla, fitting, points
from bigmodel.laws.reproduce import Result
from bigmodel.laws.source import Source

PUBLISHED = {"A": 406.4, "B": 410.7, "E": 1.69, "alpha": 0.34, "beta": 0.28}  # Hoffmann et al. 2022


def reproduce(data: Path) -> list[Result]:
  csv = str(data / "epoch" / "svg_extracted_data.csv")
  read = lambda drop: points.from_csv(Source(csv, {"N": "Model Size", "C": "Training FLOP"}, drop_largest=drop))
  fit = chinchilla.fit(read(5), bootstraps=0)
  refit = {"A": 477.826, "B": 2143.417, "E": 1.8172181, "alpha": 0.3473105, "beta": 0.3671724}
  results = [Result(f"{name}, 240 points", value, fit.params[name], 5e-5 * value) for name, value in refit.items()]
  results.append(Result("objective, 240 points", 0.00101827401780, fit.base.objective, 1e-9))
  whole = chinchilla.fit(read(0), bootstraps=0).params
  refit = {"A": 495.73, "B": 12845.6, "E": 1.89134, "alpha": 0.34931, "beta": 0.45305}
  results += [Result(f"{name}, all 245 points", value, whole[name], 5e-5 * value) for name, value in refit.items()]
  theirs = chinchilla.LAW.theta(PUBLISHED)
  log_loss = chinchilla.log_loss(theta=theirs, log_n=np.log(fit.points.N), log_d=np.log(fit.points.D))
  size = np.abs(log_loss - np.log(fit.points.loss))
  delta = fitting.DELTA
  huber = float(np.sum(np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))))
  results.append(
    Result("objective of the published parameters, times that of the fit", None, huber / fit.base.objective)
  )
  results.append(
    Result("exponent a of N* ~ C^a", 0.514, fit.params["beta"] / (fit.params["alpha"] + fit.params["beta"]), 5e-4)
  )
  return results
