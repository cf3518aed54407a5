"""The command line of what writes a page out of results."""

import argparse
import pathlib


def main(about: str, path: pathlib.Path, text: str) -> int:
  """Writes the page, or with --check says whether it is up to date.

  Args:
    about: documentation of the script.
    path: of the page.
    text: what it has to be.

  Returns:
    The exit code: 1 where `--check` finds another text.
  """
  parser = argparse.ArgumentParser(description=about.splitlines()[0])
  parser.add_argument('--check', action='store_true')
  if parser.parse_args().check:
    return int(not path.exists() or path.read_text() != text)
  path.write_text(text)
  return 0
