"""``python -m nstat_async``: the command line."""

import sys
from typing import NoReturn

from ._cli import main


def run() -> NoReturn:
    """Run the command and leave with its status: the entry point of a zipapp, which has none of its own."""
    sys.exit(main())


if __name__ == "__main__":
    run()
