"""Augmentation of images on the device: pure functions of a random key, equal on every mesh and after a resume.

Images are float[H, W, C] from 0, black, to 1. `task.augment` lists augmentations in the order in which they are
applied: `crop:4` shifts by up to 4 pixels, `flip` mirrors half of the images, `rotate:15` turns by up to 15 degrees,
`cutout:8` blackens a square of 8 pixels, `randaugment:2:9` applies 2 of 14 operations with magnitude 9 of 10 (Cubuk et
al. 2020), `mixup:0.2` blends each image and its label with another (Zhang et al. 2018).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jax.typing import ArrayLike

from bigmodel.config import nearest, require
from bigmodel.errors import UserError

Image = jax.Array  # [H, W, C]
# The default arguments of each augmentation.
ARGUMENTS: dict[str, tuple[float, ...]] = {
  "crop": (4,),
  "flip": (),
  "rotate": (15,),
  "cutout": (8,),
  "randaugment": (2, 9),
  "mixup": (0.2,),
}


def parse(text: str) -> tuple[str, tuple[float, ...]]:
  """`(name, arguments)` of one augmentation."""
  name, *given = text.split(":")
  require(name in ARGUMENTS, f"config.task.augment: no {name!r}{nearest(name, ARGUMENTS)}")
  default = ARGUMENTS[name]
  try:
    numbers = tuple(map(float, given))
  except ValueError as error:
    raise UserError(f"config.task.augment: {text!r}; the arguments of {name} are numbers") from error
  require(len(numbers) <= len(default), f"config.task.augment: {text!r}; {name} takes {len(default)} numbers")
  require(all(x > 0 for x in numbers), f"config.task.augment: {text!r} has numbers that are not positive")
  return name, (*numbers, *default[len(numbers) :])


def augment(names: tuple[str, ...], key: jax.Array, x_BxHxWxC: jax.Array) -> jax.Array:
  """The images after all augmentations except mixup, each with a random key of its own."""
  for i, text in enumerate(names):
    name, arguments = parse(text)
    if name != "mixup":
      keys = jax.random.split(jax.random.fold_in(key, i), len(x_BxHxWxC))
      x_BxHxWxC = jax.vmap(functools.partial(SINGLE_IMAGE[name], arguments))(keys, x_BxHxWxC)
  return x_BxHxWxC


def mixing(names: tuple[str, ...], key: jax.Array, rows: int) -> jax.Array | None:
  """The share of each image in its blend with the image before it, float[rows]; None without mixup."""
  mixups = [arguments for name, arguments in map(parse, names) if name == "mixup"]
  if not mixups:
    return None
  (alpha,) = mixups[0]
  return jax.random.beta(jax.random.fold_in(key, len(names)), alpha, alpha, (rows,))


def blended_with(x: jax.Array) -> jax.Array:
  """For each image (or label), the one that it is blended with: the one before it in the batch."""
  return jnp.roll(x, 1, axis=0)


def mix(share_B: jax.Array, x_BxHxWxC: jax.Array) -> jax.Array:
  """The blended images, for the shares of `mixing`."""
  share = share_B[:, None, None, None]
  return share * x_BxHxWxC + (1 - share) * blended_with(x_BxHxWxC)


def crop(arguments: tuple[float, ...], key: jax.Array, x: Image) -> Image:
  """The image shifted by up to so many pixels in each direction; the border is black."""
  n = int(arguments[0])
  padded = jnp.pad(x, ((n, n), (n, n), (0, 0)))
  down, right = jax.random.randint(key, (2,), 0, 2 * n + 1)
  return jax.lax.dynamic_slice(padded, (down, right, 0), x.shape)


def flip(arguments: tuple[float, ...], key: jax.Array, x: Image) -> Image:
  """The image, mirrored with probability 1/2."""
  del arguments
  return jnp.where(jax.random.bernoulli(key), x[:, ::-1], x)


def rotate(arguments: tuple[float, ...], key: jax.Array, x: Image) -> Image:
  """The image turned by up to so many degrees in either direction."""
  return turn(x, jax.random.uniform(key, (), minval=-1, maxval=1) * arguments[0])


def cutout(arguments: tuple[float, ...], key: jax.Array, x: Image) -> Image:
  """The image with a black square around a random pixel, cut off at the edges (DeVries and Taylor 2017)."""
  size = int(arguments[0])
  y, z = (jax.random.randint(k, (), 0, n) for k, n in zip(jax.random.split(key), x.shape, strict=False))

  def inside(at: jax.Array, n: int) -> jax.Array:
    return (jnp.arange(n) >= at - size // 2) & (jnp.arange(n) < at - size // 2 + size)

  return jnp.where((inside(y, x.shape[0])[:, None] & inside(z, x.shape[1])[None])[..., None], 0.0, x)


def randaugment(arguments: tuple[float, ...], key: jax.Array, x: Image) -> Image:
  """The image after `count` random operations of 14, each with `magnitude` of 10 and a random sign."""
  count, magnitude = int(arguments[0]), arguments[1] / 10
  for k in jax.random.split(key, count):
    which, sign = jax.random.split(k)
    signed = jnp.where(jax.random.bernoulli(sign), magnitude, -magnitude)
    operations = [functools.partial(operation, signed) for operation in OPERATIONS.values()]
    x = jax.lax.switch(jax.random.randint(which, (), 0, len(operations)), operations, x)
  return x


def _move(matrix: jax.Array, x: Image) -> Image:
  """The image whose pixel at p is that of `x` at `matrix` [2, 3] times (p, 1), relative to the middle; black outside.

  Values between pixels are interpolated linearly.
  """
  H, W, _ = x.shape
  middle = jnp.array([(H - 1) / 2, (W - 1) / 2])
  grid = jnp.stack(jnp.meshgrid(jnp.arange(H), jnp.arange(W), indexing="ij"), axis=-1) - middle
  source = grid @ jnp.asarray(matrix)[:, :2].T + jnp.asarray(matrix)[:, 2] + middle
  return jnp.stack([map_coordinates(x[..., c], list(jnp.moveaxis(source, -1, 0)), 1) for c in range(x.shape[2])], -1)


def turn(x: Image, degrees: ArrayLike) -> Image:
  """The image turned counter-clockwise."""
  angle = jnp.deg2rad(degrees)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  return _move(jnp.array([[cos, sin, 0.0], [-sin, cos, 0.0]]), x)


def _shear(y: float, z: float, m: jax.Array, x: Image) -> Image:
  return _move(jnp.array([[1.0, 0.3 * m * y, 0.0], [0.3 * m * z, 1.0, 0.0]]), x)


def _translate(y: float, z: float, m: jax.Array, x: Image) -> Image:
  return _move(jnp.array([[1.0, 0.0, 0.3 * m * y * x.shape[0]], [0.0, 1.0, 0.3 * m * z * x.shape[1]]]), x)


def blend(other: Image, x: Image, factor: ArrayLike) -> Image:
  """`other` for factor 0, the image for 1, extrapolated beyond, as in Pillow's ImageEnhance."""
  return jnp.clip(other + factor * (x - other), 0.0, 1.0)


def grey(x: Image) -> Image:
  """The luminance, [H, W, 1]."""
  weights = jnp.array([0.299, 0.587, 0.114]) if x.shape[2] == 3 else jnp.ones(x.shape[2]) / x.shape[2]
  return (x @ weights)[..., None]


def smooth(x: Image) -> Image:
  """The image after Pillow's SMOOTH filter, which leaves the edges unchanged."""
  kernel = jnp.array([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
  channels = [jax.scipy.signal.convolve2d(x[..., c], kernel, mode="same") for c in range(x.shape[2])]
  filtered = jnp.stack(channels, axis=-1)
  return x.at[1:-1, 1:-1].set(filtered[1:-1, 1:-1])


def autocontrast(x: Image) -> Image:
  """The image with each channel stretched to the range from 0 to 1."""
  low, high = x.min(axis=(0, 1)), x.max(axis=(0, 1))
  return jnp.where(high > low, (x - low) / jnp.where(high > low, high - low, 1), x)


def equalize(x: Image) -> Image:
  """The image with a flat histogram of each channel, over 256 levels, as Pillow does it."""

  def channel(plane: jax.Array) -> jax.Array:
    level = jnp.round(plane * 255).astype(jnp.int32)
    counts = jnp.zeros(256, jnp.int32).at[level.ravel()].add(1)
    last = jnp.max(jnp.where(counts > 0, jnp.arange(256), 0))
    step = (counts.sum() - counts[last]) // 255
    table = jnp.clip((step // 2 + jnp.cumsum(counts) - counts) // jnp.maximum(step, 1), 0, 255)
    return jnp.where(step > 0, table[level] / 255, plane)

  return jnp.stack([channel(x[..., c]) for c in range(x.shape[2])], axis=-1)


def solarize(x: Image, threshold: ArrayLike) -> Image:
  """The image with all values from the threshold on inverted."""
  return jnp.where(x < threshold, x, 1 - x)


def posterize(x: Image, bits: ArrayLike) -> Image:
  """The image with only so many of 8 bits kept."""
  size = 2 ** (8 - jnp.asarray(bits, jnp.int32))
  return (jnp.round(x * 255).astype(jnp.int32) // size * size) / 255


Operation = Callable[[jax.Array, Image], Image]  # of a magnitude from -1 to 1 and an image
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
SINGLE_IMAGE = {"crop": crop, "flip": flip, "rotate": rotate, "cutout": cutout, "randaugment": randaugment}
