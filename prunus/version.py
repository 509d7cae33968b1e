"""The version of prunus, in one place."""

__version__ = "0.1.0"
