"""What is coupled?  Capture, unit labels through operators, groups."""

from prunus.tracing.trace import trace

__all__ = ["trace"]
