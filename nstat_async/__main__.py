"""``python -m nstat_async``: the command line."""

import sys
from typing import NoReturn

from ._cli import main


def run() -> NoReturn:
    """Run the command and exit with its status. This is the entry point of a zipapp."""
    sys.exit(main())


if __name__ == "__main__":
    run()
