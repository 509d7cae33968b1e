"""How is a result shown?  Terminal tables, one self-contained page, a picture."""

from prunus.report.console import compare, terminal
from prunus.report.drawing import picture
from prunus.report.groups import groups_table
from prunus.report.page import html
from prunus.report.reading import Run, read, read_result
from prunus.report.words import headline, verdict

__all__ = [
    "Run",
    "compare",
    "groups_table",
    "headline",
    "html",
    "picture",
    "read",
    "read_result",
    "terminal",
    "verdict",
]
