"""Opens plain and packed (.gz, .zst, .xz) files; a packed file is read to the end of its last stream or refused."""

import io
import lzma
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, TextIO, cast

from bigmodel.errors import UserError
from bigmodel.readers import downloads

if TYPE_CHECKING:
  from _typeshed import WriteableBuffer

BLOCK = 1 << 13  # packed bytes read at once; a block of blanks may unpack to some thousand times its size
PACKED_SUFFIXES = (".gz", ".zst", ".xz")
BEGINNINGS = {".gz": b"\x1f\x8b", ".xz": b"\xfd7zXZ\x00", ".zst": b"\x28\xb5\x2f\xfd"}
SKIPPABLE = b"\x2a\x4d\x18"  # the second to fourth byte of a Zstandard frame without content
NAMES = {".gz": "gzip", ".xz": "xz", ".zst": "Zstandard"}


class Decompressor(Protocol):
  """What unpacks one stream: zlib, lzma and zstandard have the same interface."""

  @property
  def eof(self) -> bool: ...

  @property
  def unused_data(self) -> bytes: ...

  def decompress(self, data: bytes, /) -> bytes: ...


def _gzip() -> Decompressor:
  return zlib.decompressobj(wbits=31)


def _xz() -> Decompressor:
  return lzma.LZMADecompressor(lzma.FORMAT_XZ)


def _zstandard() -> Decompressor:
  import zstandard

  return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


DECOMPRESSORS: dict[str, Callable[[], Decompressor]] = {".gz": _gzip, ".xz": _xz, ".zst": _zstandard}


class Unpacked(io.RawIOBase):
  """The content of a packed file. Raises `UserError` where the file ends inside a stream or is damaged."""

  def __init__(self, path: Path, kind: str) -> None:
    self._file = open(path, "rb")  # noqa: SIM115 (closed by `close`)
    self._path, self._kind = path, kind
    self._stream = DECOMPRESSORS[kind]()
    self._packed = b""
    self._ready = memoryview(b"")

  def readable(self) -> bool:
    return True

  def close(self) -> None:
    self._file.close()
    super().close()

  def readinto(self, buffer: "WriteableBuffer", /) -> int:
    while len(self._ready) == 0 and self._more():
      pass
    room = memoryview(buffer).cast("B")
    size = min(len(room), len(self._ready))
    room[:size], self._ready = self._ready[:size], self._ready[size:]
    return size

  def _more(self) -> bool:
    """Unpacks another block; returns whether there was one."""
    packed, self._packed = self._packed or self._file.read(BLOCK), b""
    if not packed:
      if not self._stream.eof:
        raise UserError(f"{self._path}: ends inside its {NAMES[self._kind]} stream; the file is truncated")
      return False
    if self._stream.eof:  # another stream follows, or zeros that fill a block of a tape
      packed = packed.lstrip(b"\0")
      if not packed:
        return True
      self._stream = DECOMPRESSORS[self._kind]()
    try:
      self._ready = memoryview(self._stream.decompress(packed))
    except (zlib.error, lzma.LZMAError, EOFError, _zstandard_error()) as error:
      raise UserError(f"{self._path}: a damaged {NAMES[self._kind]} file ({str(error).strip()})") from error
    self._packed = self._stream.unused_data if self._stream.eof else b""
    return True


def _zstandard_error() -> type[Exception]:
  import zstandard

  return zstandard.ZstdError


def suffix(path: str | os.PathLike[str]) -> str:
  """The suffix of a file's name in lower case, without that of its compression: `.txt` for `A.TXT.gz`."""
  path = Path(path)
  return Path(path.stem).suffix.lower() if path.suffix.lower() in PACKED_SUFFIXES else path.suffix.lower()


def _kind(begin: bytes) -> str:
  """The suffix of packed files that begin like this, or '' for other files."""
  if begin[1:].startswith(SKIPPABLE):
    return ".zst"
  return next((kind for kind, mark in BEGINNINGS.items() if begin.startswith(mark)), "")


def open_bytes(path: str | os.PathLike[str]) -> BinaryIO:
  """Opens a file to read its bytes, unpacked. Raises `UserError` if its name and its first bytes do not agree.

  Also refuses what Git LFS leaves in place of a file.
  """
  path = Path(path)
  kind = path.suffix.lower()
  try:
    with open(path, "rb") as file:
      begin = file.read(downloads.ENOUGH)
    if downloads.is_pointer(begin):
      raise UserError(f"{path}: {downloads.mistaken(begin)}")
    found = _kind(begin)
    if kind not in PACKED_SUFFIXES:
      if found:
        raise UserError(f"{path}: a {NAMES[found]} file whose name does not end in {found}")
      return open(path, "rb")
    if found != kind:
      what = f"it is a {NAMES[found]} file" if found else f"it begins with {begin[:8]!r}" if begin else "it is empty"
      raise UserError(f"{path}: not a {NAMES[kind]} file ({what})")
    return io.BufferedReader(Unpacked(path, kind), 1 << 16)
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def open_text(path: str | os.PathLike[str], errors: str = "strict") -> TextIO:
  """Opens a UTF-8 file, with or without a byte order mark, unpacked; line ends of any kind become one `\\n`."""
  return cast(TextIO, io.TextIOWrapper(open_bytes(path), "utf-8-sig", errors))
