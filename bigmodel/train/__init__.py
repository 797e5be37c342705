"""Training: state, step, loop, evaluation, checkpoints and metrics of one program."""

from bigmodel.train.fields import check
from bigmodel.train.horizon import batch_tokens, own_steps, phases, tokens_at
from bigmodel.train.stages import steps_of

__all__ = ["batch_tokens", "check", "own_steps", "phases", "steps_of", "tokens_at"]
