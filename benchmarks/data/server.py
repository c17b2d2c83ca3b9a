"""A web server on loopback that ``benchmarks/data/`` downloads from, in a process of its own.

``python -m benchmarks.data.server FOLDER SOCKET``: serves the files of a folder, with ETags and ranges, on a socket
that listens already, so that nobody has to wait for it.
"""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web

from benchmarks.data.worker import ROOT

LOOPBACK = "127.0.0.1"


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve ``folder`` for the length of a ``with`` block; yields the URL of the folder."""
    with socket.create_server((LOOPBACK, 0)) as listening:
        descriptor = listening.fileno()
        command = [sys.executable, "-m", "benchmarks.data.server", str(folder), str(descriptor)]
        with subprocess.Popen(command, cwd=ROOT, pass_fds=[descriptor]) as server:  # noqa: S603 our own module
            try:
                yield f"http://{LOOPBACK}:{listening.getsockname()[1]}"
            finally:
                server.terminate()


def main() -> None:
    """Serve the folder that the command line names, until terminated."""
    folder, descriptor = sys.argv[1:]
    application = web.Application()
    application.router.add_static("/", folder)
    web.run_app(application, sock=socket.socket(fileno=int(descriptor)), print=None, access_log=None)


if __name__ == "__main__":
    main()
