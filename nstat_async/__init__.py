"""Stream every network flow of this machine, with the process behind it, into ``async for``."""

__version__ = "0.1.0"
