"""Whole runs as YAML: a recipe names a model, its data, and the stages it goes through."""

from prunus.recipes.load import builtin, check, dump, expand, find, load
from prunus.recipes.run import run
from prunus.recipes.schema import Recipe

__all__ = ["Recipe", "builtin", "check", "dump", "expand", "find", "load", "run"]
