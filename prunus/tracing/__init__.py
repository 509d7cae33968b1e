"""What is coupled?  Capture, unit labels through operators, groups."""

from prunus.tracing.trace import check_prunable, trace

__all__ = ["check_prunable", "trace"]
