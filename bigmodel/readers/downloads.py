"""Recognises what a download leaves in place of a file: nothing, a web page, a Git LFS pointer or another format."""

LFS = b"version https://git-lfs.github.com/spec/"
FORMATS = {
  b"PK\x03\x04": "a zip archive, such as a PyTorch file (.bin, .pt)",
  b"\x80\x02": "a Python pickle, such as a PyTorch file (.bin, .pt)",
  b"GGUF": "a GGUF file of llama.cpp",
  b"\x89HDF": "an HDF5 file",
  b"\x1f\x8b": "a gzip file",
}
ENOUGH = 512  # bytes at the beginning of a file


def is_pointer(begin: bytes) -> bool:
  """Whether a file that begins like this is a pointer of Git LFS, whose content has not been fetched."""
  return begin.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(LFS)


def mistaken(begin: bytes) -> str:
  """What a file that begins like this is instead of its content, and what to do; '' where nothing is recognised."""
  text = begin.removeprefix(b"\xef\xbb\xbf").lstrip()
  if not begin:
    return "it is empty; download it again"
  if not begin.strip(b"\0"):
    return "it begins with zeros, as an interrupted download does; download it again"
  if is_pointer(begin):
    return "it is a Git LFS pointer and not the content; run `git lfs pull` there, or download the file itself"
  if text[:1] == b"<":
    return "it is a web page; download the raw file instead of the page that shows it"
  return next((f"it is {name}" for mark, name in FORMATS.items() if begin.startswith(mark)), "")
