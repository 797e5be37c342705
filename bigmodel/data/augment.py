"""Augmentation of images, on the device: pure functions of a key, the same on every mesh and after a resume.

Images are float[H, W, C] from 0, black, to 1. Names as `task.augment` has them, in its order:
`crop:4` shifts by up to 4 pixels, `flip` mirrors half of the images, `rotate:15` turns by up to
15 degrees, `cutout:8` blackens a square of 8 pixels, `randaugment:2:9` applies 2 of 14 operations
with magnitude 9 of 10 (Cubuk et al. 2020), `mixup:0.2` blends each with another image and its
label (Zhang et al. 2018).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from bigmodel.config import nearest, require
from bigmodel.errors import UserError

Image = jax.Array  # [H, W, C]
ARGUMENTS: dict[str, tuple[float, ...]] = {  # and what they are by default
  "crop": (4,), "flip": (), "rotate": (15,), "cutout": (8,), "randaugment": (2, 9), "mixup": (0.2,),
}  # fmt: skip


def parse(text: str) -> tuple[str, tuple[float, ...]]:
  """`(name, arguments)` of one augmentation."""
  name, *given = text.split(":")
  require(name in ARGUMENTS, f"config.task.augment: no {name!r}{nearest(name, ARGUMENTS)}")
  default = ARGUMENTS[name]
  try:
    numbers = tuple(map(float, given))
  except ValueError as error:
    raise UserError(f"config.task.augment: {text!r}: numbers, please, after {name}") from error
  require(len(numbers) <= len(default), f"config.task.augment: {text!r}; {name} takes {len(default)} numbers")
  require(all(x > 0 for x in numbers), f"config.task.augment: {text!r} has numbers that are not positive")
  return name, (*numbers, *default[len(numbers) :])


def augment(names: tuple[str, ...], key: jax.Array, x_BxHxWxC: jax.Array) -> jax.Array:
  """The images after all that changes them one by one."""
  for i, text in enumerate(names):
    name, arguments = parse(text)
    if name != "mixup":
      keys = jax.random.split(jax.random.fold_in(key, i), len(x_BxHxWxC))
      x_BxHxWxC = jax.vmap(functools.partial(ONE_BY_ONE[name], arguments))(keys, x_BxHxWxC)
  return x_BxHxWxC


def mixing(names: tuple[str, ...], key: jax.Array, rows: int) -> jax.Array | None:
  """The share of itself that each image keeps, the rest is the image before it; None without mixup."""
  found = [arguments for name, arguments in map(parse, names) if name == "mixup"]
  if not found:
    return None
  (alpha,) = found[0]
  return jax.random.beta(jax.random.fold_in(key, len(names)), alpha, alpha, (rows,))


def blended_with(x: jax.Array) -> jax.Array:
  """Of each image (or label) the one that it is blended with: the one before it in the batch."""
  return jnp.roll(x, 1, axis=0)


def mix(share_B: jax.Array, x_BxHxWxC: jax.Array) -> jax.Array:
  share = share_B[:, None, None, None]
  return share * x_BxHxWxC + (1 - share) * blended_with(x_BxHxWxC)


def crop(arguments: tuple[float, ...], key: jax.Array, x: Image) -> Image:
  n = int(arguments[0])
  padded = jnp.pad(x, ((n, n), (n, n), (0, 0)))
  down, right = jax.random.randint(key, (2,), 0, 2 * n + 1)
  return jax.lax.dynamic_slice(padded, (down, right, 0), x.shape)


def flip(arguments: tuple[float, ...], key: jax.Array, x: Image) -> Image:
  del arguments
  return jnp.where(jax.random.bernoulli(key), x[:, ::-1], x)


def rotate(arguments: tuple[float, ...], key: jax.Array, x: Image) -> Image:
  return turn(x, jax.random.uniform(key, (), minval=-1, maxval=1) * arguments[0])


def cutout(arguments: tuple[float, ...], key: jax.Array, x: Image) -> Image:
  """A square around any pixel: less of it at the edges (DeVries and Taylor 2017)."""
  size = int(arguments[0])
  y, z = (jax.random.randint(k, (), 0, n) for k, n in zip(jax.random.split(key), x.shape, strict=False))
  inside = lambda at, n: (jnp.arange(n) >= at - size // 2) & (jnp.arange(n) < at - size // 2 + size)
  return jnp.where((inside(y, x.shape[0])[:, None] & inside(z, x.shape[1])[None])[..., None], 0.0, x)


def randaugment(arguments: tuple[float, ...], key: jax.Array, x: Image) -> Image:
  """`count` operations of 14, each with `magnitude` of 10 and either sign."""
  count, magnitude = int(arguments[0]), arguments[1] / 10
  for k in jax.random.split(key, count):
    which, sign = jax.random.split(k)
    signed = jnp.where(jax.random.bernoulli(sign), magnitude, -magnitude)
    operations = [functools.partial(operation, signed) for operation in OPERATIONS.values()]
    x = jax.lax.switch(jax.random.randint(which, (), 0, len(operations)), operations, x)
  return x


def _move(matrix: Any, x: Image) -> Image:
  """The image whose pixel p comes from `matrix` times p, about the middle, between pixels if need be; black outside."""
  H, W, _ = x.shape
  middle = jnp.array([(H - 1) / 2, (W - 1) / 2])
  grid = jnp.stack(jnp.meshgrid(jnp.arange(H), jnp.arange(W), indexing="ij"), axis=-1) - middle
  source = grid @ jnp.asarray(matrix)[:, :2].T + jnp.asarray(matrix)[:, 2] + middle
  return jnp.stack([map_coordinates(x[..., c], list(jnp.moveaxis(source, -1, 0)), 1) for c in range(x.shape[2])], -1)


def turn(x: Image, degrees: Any) -> Image:
  """Turned counter-clockwise."""
  angle = jnp.deg2rad(degrees)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  return _move(jnp.array([[cos, sin, 0.0], [-sin, cos, 0.0]]), x)


def _shear(y: float, z: float, m: Any, x: Image) -> Image:
  return _move(jnp.array([[1.0, 0.3 * m * y, 0.0], [0.3 * m * z, 1.0, 0.0]]), x)


def _translate(y: float, z: float, m: Any, x: Image) -> Image:
  return _move(jnp.array([[1.0, 0.0, 0.3 * m * y * x.shape[0]], [0.0, 1.0, 0.3 * m * z * x.shape[1]]]), x)


def blend(other: Image, x: Image, factor: Any) -> Image:
  """`other` at 0, the image at 1, more of it beyond; as Pillow's ImageEnhance."""
  return jnp.clip(other + factor * (x - other), 0.0, 1.0)


def grey(x: Image) -> Image:
  weights = jnp.array([0.299, 0.587, 0.114]) if x.shape[2] == 3 else jnp.ones(x.shape[2]) / x.shape[2]
  return (x @ weights)[..., None]


def smooth(x: Image) -> Image:
  """Pillow's SMOOTH filter; edges stay as they are."""
  kernel = jnp.array([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
  one = lambda plane: jax.scipy.signal.convolve2d(plane, kernel, mode="same")
  filtered = jnp.stack([one(x[..., c]) for c in range(x.shape[2])], axis=-1)
  return x.at[1:-1, 1:-1].set(filtered[1:-1, 1:-1])


def autocontrast(x: Image) -> Image:
  low, high = x.min(axis=(0, 1)), x.max(axis=(0, 1))
  return jnp.where(high > low, (x - low) / jnp.where(high > low, high - low, 1), x)


def equalize(x: Image) -> Image:
  """The histogram of each channel made flat, over 256 steps, as Pillow does it."""

  def one(plane: jax.Array) -> jax.Array:
    level = jnp.round(plane * 255).astype(jnp.int32)
    counts = jnp.zeros(256, jnp.int32).at[level.ravel()].add(1)
    last = jnp.max(jnp.where(counts > 0, jnp.arange(256), 0))
    step = (counts.sum() - counts[last]) // 255
    table = jnp.clip((step // 2 + jnp.cumsum(counts) - counts) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step > 0, table[level] / 255, plane)

  return jnp.stack([one(x[..., c]) for c in range(x.shape[2])], axis=-1)


def solarize(x: Image, threshold: Any) -> Image:
  """What is at least as bright as the threshold becomes its negative."""
  return jnp.where(x < threshold, x, 1 - x)


def posterize(x: Image, bits: Any) -> Image:
  """Only so many bits of each 8 are kept."""
  size = 2 ** (8 - jnp.asarray(bits, jnp.int32))
  return (jnp.round(x * 255).astype(jnp.int32) // size * size) / 255


Operation = Callable[[Any, Image], Image]  # (magnitude from -1 to 1, image)
OPERATIONS: dict[str, Operation] = {
  "identity": lambda m, x: x,
  "autocontrast": lambda m, x: autocontrast(x),
  "equalize": lambda m, x: equalize(x),
  "rotate": lambda m, x: turn(x, 30 * m),
  "solarize": lambda m, x: solarize(x, 1 - jnp.abs(m)),
  "color": lambda m, x: blend(grey(x), x, 1 + 0.9 * m),
  "posterize": lambda m, x: posterize(x, 8 - jnp.round(4 * jnp.abs(m))),
  "contrast": lambda m, x: blend(jnp.full_like(x, grey(x).mean()), x, 1 + 0.9 * m),
  "brightness": lambda m, x: blend(jnp.zeros_like(x), x, 1 + 0.9 * m),
  "sharpness": lambda m, x: blend(smooth(x), x, 1 + 0.9 * m),
  "shear_x": functools.partial(_shear, 0.0, 1.0),
  "shear_y": functools.partial(_shear, 1.0, 0.0),
  "translate_x": functools.partial(_translate, 0.0, 1.0),
  "translate_y": functools.partial(_translate, 1.0, 0.0),
}
ONE_BY_ONE = {"crop": crop, "flip": flip, "rotate": rotate, "cutout": cutout, "randaugment": randaugment}
