"""The page of a traced network: every group, and where its slices are in the model."""

from __future__ import annotations

from typing import Any

from prunus.report import words
from prunus.report.view import View


def groups_page(view: View, *, name: str = "") -> str:
    return ""
