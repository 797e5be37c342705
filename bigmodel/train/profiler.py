"""A trace of a few steps for TensorBoard's profiler and Perfetto."""

import jax
from etils import epath


class Profiler:
  """Traces `steps` steps from the third one on: the first ones compile."""

  def __init__(self, folder: epath.Path, steps: int, total: int):
    self.folder, self.steps, self.total = folder, steps, total
    self.start = 0  # the step at which training begins here

  def before(self, step: int) -> None:
    """To be called before each step."""
    if self.steps and step == self.start + 2:
      jax.profiler.start_trace(str(self.folder))

  def after(self, step: int, state: object) -> None:
    """To be called after `step` has been dispatched."""
    if self.steps and self.start + 2 <= step == min(self.start + 1 + self.steps, self.total - 1):
      jax.block_until_ready(state)
      jax.profiler.stop_trace()
