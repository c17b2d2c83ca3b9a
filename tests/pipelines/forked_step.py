"""Stands for the interpreter of a step: asks the process of ``conftest.py`` for a fork, and ends as that does.

python forked_step.py SOCKET -m MODULE ARGUMENT...
"""

import json
import os
import socket
import sys

_, address, *arguments = sys.argv
step = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}  # noqa: PTH109 no pathlib: fast
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(address)
    socket.send_fds(connection, [b"."], [1, 2])
    connection.sendall(json.dumps(step).encode() + b"\n")
    code = int(connection.makefile().readline())
sys.exit(code)
