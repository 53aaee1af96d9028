"""The two pages for people, each of one file; every address in them is relative, for they are served behind
other paths too."""

from pathlib import Path

_HERE = Path(__file__).parent
PAGE = (_HERE / "page.html").read_bytes()
DOCS = (_HERE / "docs.html").read_bytes()
