"""Single examples, as somebody gives them on a command line."""

import pathlib

from effformer.data import images
from effformer.data.known import KNOWN
from effformer.errors import DataError


def read_input(name: str, given: str) -> bytes:
  """The text, or the grey values, of one input of the data set `name`.

  Args:
    name: a key of `KNOWN`.
    given: for images the path of an image file of the right size; else the text
      itself, or @FILE for what stands in a file, without its last line end. An
      expression may have the parentheses of the release of LRA.

  Raises:
    DataError: it cannot be read, is empty, or is none of this data set.
  """
  known = KNOWN[name]
  if known.side:
    try:
      path = pathlib.Path(given).expanduser()
      return images.read_image(path, known.side)
    except (DataError, RuntimeError) as error:
      raise DataError(
        f'--input={given}: {str(error).rstrip(".")}.\n'
        f'Give an image file of {known.side} x {known.side} pixels.'
      ) from None
  text = _text(given)
  if known.clean_text:
    text = known.clean_text(text)
  if not text:
    raise DataError(f'--input={given}: empty.\nGive a text, or @FILE.')
  if known.check_text:
    try:
      known.check_text(text)
    except DataError as error:
      raise DataError(f'--input={given[:40]}: {error}') from None
  return text


def _text(given: str) -> bytes:
  if not given.startswith('@'):
    # What came in as bytes that are no UTF-8 goes out as these bytes.
    return given.encode('utf-8', 'surrogateescape')
  try:
    data = pathlib.Path(given[1:]).expanduser().read_bytes()
  except (OSError, RuntimeError) as error:
    reason = getattr(error, 'strerror', None) or str(error).rstrip('.')
    raise DataError(
      f'--input={given}: {reason}.\n'
      'Give @FILE; a text that starts with @ goes into a file, too.'
    ) from None
  return data.removesuffix(b'\n').removesuffix(b'\r')
