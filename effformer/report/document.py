"""Headings, texts, tables and pictures, as Markdown and as one HTML page."""

import base64
import dataclasses
import html
import pathlib
from collections.abc import Sequence

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem;
       margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd;
         text-align: left; }
td + td { font-variant-numeric: tabular-nums; }
img { max-width: 100%; }
"""


@dataclasses.dataclass(frozen=True)
class Heading:
  text: str
  level: int = 2


@dataclasses.dataclass(frozen=True)
class Text:
  text: str


@dataclasses.dataclass(frozen=True)
class Table:
  header: Sequence[str]
  rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Picture:
  """A plot; the files `<name>.svg` and `<name>.png` hold it.

  Attributes:
    name: of the files.
    about: what is to be seen.
    svg, png: their bytes.
  """

  name: str
  about: str
  svg: bytes
  png: bytes


Block = Heading | Text | Table | Picture


def markdown(blocks: Sequence[Block]) -> str:
  """The blocks, with pictures as links to files beside the text."""
  return '\n\n'.join(map(_markdown, blocks)) + '\n'


def _markdown(block: Block) -> str:
  match block:
    case Heading(text, level):
      return f'{"#" * level} {_one_line(text)}'
    case Text(text):
      return text
    case Table(header, rows):
      lines = [header, ['---'] * len(header), *rows]
      return '\n'.join(f'| {" | ".join(map(_cell, line))} |' for line in lines)
    case Picture(name, about):
      return f'![{about}]({name}.svg)'


def _cell(text: str) -> str:
  return _one_line(text).replace('|', '\\|')


def _one_line(text: str) -> str:
  return ' '.join(text.split())


def page(title: str, blocks: Sequence[Block]) -> str:
  """One HTML page that needs no other file and runs nothing."""
  body = '\n'.join(map(_html, blocks))
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f'<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n'
    f'<body>\n{body}\n</body>\n</html>\n'
  )


def _html(block: Block) -> str:
  match block:
    case Heading(text, level):
      return f'<h{level}>{html.escape(text)}</h{level}>'
    case Text(text):
      return f'<p>{html.escape(text)}</p>'
    case Table(header, rows):
      head = ''.join(f'<th>{html.escape(cell)}</th>' for cell in header)
      lines = ''.join(
        f'<tr>{"".join(f"<td>{html.escape(cell)}</td>" for cell in row)}</tr>\n'
        for row in rows
      )
      return f'<table>\n<tr>{head}</tr>\n{lines}</table>'
    case Picture(_, about, svg):
      # As an image, so that nothing in it could run.
      data = base64.b64encode(svg).decode()
      return (
        f'<p><img alt="{html.escape(about)}" '
        f'src="data:image/svg+xml;base64,{data}"></p>'
      )


def write(folder: pathlib.Path, title: str, blocks: Sequence[Block]) -> None:
  """report.md, report.html and the pictures."""
  folder.mkdir(parents=True, exist_ok=True)
  for block in blocks:
    if isinstance(block, Picture):
      (folder / f'{block.name}.svg').write_bytes(block.svg)
      (folder / f'{block.name}.png').write_bytes(block.png)
  (folder / 'report.md').write_text(markdown(blocks), 'utf-8')
  (folder / 'report.html').write_text(page(title, blocks), 'utf-8')
