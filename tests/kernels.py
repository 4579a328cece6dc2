"""The Darwin kernels that tests of all releases play with: each has something that the one before had not."""

from __future__ import annotations

KERNELS = (
    "xnu-1699.32.7",
    "xnu-2050.48.11",
    "xnu-2422.115.4",
    "xnu-2782.40.9",
    "xnu-3248.60.10",
    "xnu-3789.70.16",
    "xnu-4570.71.2",
    "xnu-6153.141.1",
    "xnu-7195.141.2",
    "xnu-8019.41.5",
    "xnu-8020.140.41",
    "xnu-8796.141.3",
    "xnu-10002.81.5",
    "xnu-10063.141.1",
    "xnu-11215.81.4",
    "xnu-11417.121.6",
    "xnu-12377.1.9",
)
_MINOR = ("xnu-6153.141.1", "xnu-8020.140.41", "xnu-10002.81.5", "xnu-11215.81.4")
GENERATIONS = tuple(name for name in KERNELS if name not in _MINOR)
"""Without those that differ least: for tests that take longer."""
