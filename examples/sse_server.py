"""A live page, events and totals over HTTP.

    python sse_server.py [--port N] [RECORDING]

Needs the extra ``server``. From a shell: ``curl -N http://127.0.0.1:8765/events``
"""

import argparse

from nstat_async import Monitor, backends
from nstat_async.integrations.server import serve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recording", nargs="?", help="a recording, replayed as fast as it happened")
    parser.add_argument("--port", type=int, default=8765)
    arguments = parser.parse_args()

    def open_monitor() -> Monitor:
        if arguments.recording:
            return Monitor(backend=backends.Replay(arguments.recording, speed=1.0))
        return Monitor(interval=1.0)

    serve(open_monitor, port=arguments.port, ready=lambda addresses: print(*addresses, flush=True))


if __name__ == "__main__":
    main()
