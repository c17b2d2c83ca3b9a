"""What logging in to a server of the cluster takes, whichever server it is."""

import re
from pathlib import Path

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""In each pod: the token and the authorities of the account that it runs as."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Hosts that a token may be sent to unencrypted."""

TOKEN_CHARACTERS = re.compile(r"[!-~]+")
"""What a bearer token is made of; a header with anything else is refused by an error that prints it."""
