"""How is a result shown?  Terminal tables, one self-contained page, a picture."""

from prunus.report.console import compare, terminal
from prunus.report.drawing import picture
from prunus.report.groups import groups_table
from prunus.report.groups_page import groups_page
from prunus.report.page import html
from prunus.report.reading import Run, read, read_result
from prunus.report.tree import groups_tree
from prunus.report.view import View
from prunus.report.words import headline, verdict

__all__ = [
    "Run",
    "View",
    "compare",
    "groups_page",
    "groups_table",
    "groups_tree",
    "headline",
    "html",
    "picture",
    "read",
    "read_result",
    "terminal",
    "verdict",
]
