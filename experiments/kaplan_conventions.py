"""Why did Kaplan et al. find that optimal models grow as C^0.73, and Hoffmann et al. as C^0.50?

Claim (Pearce and Song 2024): most of the difference arises because Kaplan et al. counted parameters and FLOPs without
embeddings, at small scale. With Chinchilla's law for the loss, N_total = N + 47,491 N^(1/3) for their models, and the
sizes that they trained, the optimal N grows with an exponent close to theirs.

Method, by arithmetic: for each C = 6 N D without embeddings, the N with the least loss.

    bigmodel reproduce kaplan_conventions
"""

from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar

from bigmodel.laws.reproduce import Result

EMBEDDINGS = 47_491  # parameters of them, over the cube root of the others
RANGE = (10**12.95, 10**20.7)  # FLOPs at which models of 768 to 1.5 billion parameters are optimal
LAWS = {  # E, A, B, alpha, beta
  "Besiroglu et al.": (1.8172, 482.01, 2085.43, 0.3478, 0.3658),
  "Hoffmann et al.": (1.693, 406.4, 410.7, 0.3392, 0.2849),
}


def exponent(law: tuple[float, ...], embeddings: float) -> float:
  E, A, B, alpha, beta = law

  def best(C: float) -> float:
    loss = lambda n: E + A / (np.exp(n) + embeddings * np.exp(n / 3)) ** alpha + B / (C / 6 / np.exp(n)) ** beta
    return minimize_scalar(loss, bounds=(0, 40), method="bounded", options={"xatol": 1e-10}).x

  C = np.geomspace(*RANGE, 100)
  return float(np.polyfit(np.log(C), [best(c) for c in C], 1)[0])


def reproduce(data: Path) -> list[Result]:
  del data
  results = []
  for name, published in (("Besiroglu et al.", 0.78), ("Hoffmann et al.", 0.74)):
    results.append(
      Result(f"exponent without embeddings, law of {name}", published, exponent(LAWS[name], EMBEDDINGS), 0.015)
    )
  for name, published in (("Besiroglu et al.", 0.513), ("Hoffmann et al.", 0.456)):
    results.append(Result(f"exponent of all parameters, law of {name}", published, exponent(LAWS[name], 0), 1e-3))
  return results
