"""How large things may be in a graph: what is larger is left to torch, or refused in a file."""

from __future__ import annotations

NODES = 1 << 16
BYTES = 1 << 31  # of one value: kernels count bytes in 32 bits
BEYOND = 64  # zeros around a picture that no window has to reach
ROOM = 1 << 20  # floats of a channel with its halo, beside four times its pixels
TAPS = 1024  # of a pool: they are written out in its kernel
MIXED = 1 << 27  # numbers of a table that mixes pixels
LEAST, TIMES = 1 << 28, 1 << 8  # bytes of what torch gives: so many in any case, and so many times a file's and inputs'
COUNT = 1 << 31  # any whole number is smaller
