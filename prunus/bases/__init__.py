"""In which coordinates weights are pruned: filters as coefficients times a basis that trains along (interspace)."""

from prunus.bases.basis import Basis, fold_, interspaced, normalize_
from prunus.bases.costs import Costs, costs
from prunus.bases.dictionary import dictionary, sparse_dictionary
from prunus.bases.inits import inits
from prunus.bases.interspace import Interspaced, interspace_, parameter_groups
from prunus.bases.mixing import mixing
from prunus.bases.sharing import shared

__all__ = [
    "Basis",
    "Costs",
    "Interspaced",
    "costs",
    "dictionary",
    "fold_",
    "inits",
    "interspace_",
    "interspaced",
    "mixing",
    "normalize_",
    "parameter_groups",
    "shared",
    "sparse_dictionary",
]
