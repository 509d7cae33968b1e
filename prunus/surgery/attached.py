"""What other rooms attach to a network, and a file has to know of to build it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from prunus.core import FileError, InputError
from prunus.core.kinds import check_kind

PREFIX = "prunus_attached_"  # of the entries of a file's header


@dataclass(frozen=True)
class Attachment:
    """A kind of modules that are attached as children named `child`.

    `describe` says as text what a network has of them, None for nothing; `attach` builds it onto a network that was cut
    already, and raises `FileError` where it does not fit.  `uncut` says what to do where a network that has them is to
    be cut, which they would not follow.
    """

    child: str
    describe: Callable[[nn.Module], str | None]
    attach: Callable[[nn.Module, str], None]
    uncut: str


attachments: dict[str, Attachment] = {}  # filled by the rooms that attach


def described(model: nn.Module) -> dict[str, str]:
    """Entries of a file's header for everything that is attached."""
    found = {PREFIX + kind: a.describe(model) for kind, a in attachments.items()}
    return {key: text for key, text in found.items() if text is not None}


def check_cuttable(model: nn.Module) -> None:
    """Raise `InputError` for a network that cannot be cut, or with something attached that would not fit then."""
    check_kind(model)
    for kind, a in attachments.items():
        if a.describe(model) is not None:
            raise InputError(f"this {type(model).__name__} is {kind}: {a.uncut}")


def in_header(header: dict[str, str]) -> dict[str, str]:
    """The entries that `described` made, in a fixed order."""
    return {key: header[key] for key in sorted(header) if key.startswith(PREFIX)}


def of_attached(name: str) -> bool:
    """Whether a tensor belongs to something that is attached."""
    return any(a.child in name.split(".") for a in attachments.values())


def attach_again_(model: nn.Module, header: dict[str, str]) -> None:
    """Build what a file's header says is attached."""
    for key, text in in_header(header).items():
        kind = key.removeprefix(PREFIX)
        if kind not in attachments:
            raise FileError(f"it holds '{kind}', which this version of prunus does not know.")
        attachments[kind].attach(model, text)
