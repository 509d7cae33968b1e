"""The nouns of prunus: what every room shares.  Imports torch alone."""

from prunus.core.budget import Budget
from prunus.core.errors import (
    BudgetError,
    FileError,
    InputError,
    MissingExtraError,
    NothingToPruneError,
    PrunusError,
    TraceError,
    TrainingError,
    UnknownNameError,
    VerificationError,
    WriteError,
    did_you_mean,
    missing_extra,
)
from prunus.core.groups import Groups
from prunus.core.inputs import Inputs
from prunus.core.operators import Cost, EditRule, Fixed, Fold, IntFact, Operator, TensorAxes, Term
from prunus.core.parts import Added, Dropped, Edit, GroupPlan, Mask, Scaled, TensorPlan
from prunus.core.plan import Plan
from prunus.core.registry import Entry, Registry
from prunus.core.report import Report, Verified
from prunus.core.slices import ELEMENTS, Group, Slice, under

__all__ = [
    "ELEMENTS",
    "Added",
    "Dropped",
    "Budget",
    "BudgetError",
    "Cost",
    "Edit",
    "EditRule",
    "Entry",
    "FileError",
    "Fixed",
    "Fold",
    "Group",
    "GroupPlan",
    "Groups",
    "InputError",
    "Inputs",
    "IntFact",
    "Mask",
    "MissingExtraError",
    "NothingToPruneError",
    "Operator",
    "Plan",
    "PrunusError",
    "Registry",
    "Report",
    "Slice",
    "TensorAxes",
    "Term",
    "Scaled",
    "TensorPlan",
    "TraceError",
    "TrainingError",
    "UnknownNameError",
    "VerificationError",
    "Verified",
    "WriteError",
    "did_you_mean",
    "missing_extra",
    "under",
]
