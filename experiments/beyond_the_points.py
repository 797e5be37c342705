"""Does Chinchilla's law foretell the larger runs of its own study, and do intervals hold?

Claim (usual practice): a bootstrap of the law's parameters says how far its forecasts may be trusted. Here:
the 240 points of Hoffmann et al. 2022 (Besiroglu et al. 2024) below 1e20, 3e20 and 1e21 FLOPs, asked about
those above. The bootstrap alone covers under a third of them; with the noise of points and a discrepancy that
grows with distance, measured on smaller scales, 90% intervals cover 80 to 97%.

    bigmodel reproduce beyond_the_points
"""

from pathlib import Path

import numpy as np

from bigmodel.laws import chinchilla, forecast, points
from bigmodel.laws.reproduce import Result

CUTS = (1e20, 3e20, 1e21)


def reproduce(data: Path) -> list[Result]:
  csv = str(data / "epoch" / "svg_extracted_data.csv")
  known = points.from_csv(csv, "Model Size", None, "Training FLOP", "loss", 5)
  results = []
  for cut in CUTS:
    fit = chinchilla.fit(known[cut >= known.C])
    above = known[cut < known.C]
    said = forecast.at(fit.known, forecast.spread(fit.known), (above.N, above.D))
    alone = forecast.at(fit.known, forecast.Spread(0.0, 0.0, 0), (above.N, above.D))
    where = f"{len(above)} points above {cut:.0e}"
    rmsle = float(np.sqrt(np.mean(np.log(said["predicted"] / above.loss) ** 2)))
    held = lambda own, above=above: float(np.mean((own["low"] <= above.loss) & (above.loss <= own["high"])))
    results.append(Result(f"RMSLE, {where}", None, rmsle))
    results.append(Result(f"coverage at 90% by the bootstrap alone, {where}", None, held(alone)))
    results.append(Result(f"coverage at 90%, {where}", 0.9, held(said), 0.1))
  return results
