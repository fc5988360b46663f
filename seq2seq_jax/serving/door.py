"""Who may come in: the address that is listened at, the token, and what browsers say of themselves.

On a loopback address without a token, two things keep a web page elsewhere from
using its visitor's browser against the server. The Host header must name a
loopback address: a name of the page's own that resolves to one (DNS rebinding)
is refused. And what changes anything takes application/json alone, for which a
browser asks first, with an Origin header, and is never told yes.

With a token neither is needed, for no browser sends it by itself.
"""

import errno
import hmac
import ipaddress
import os
import re
import socket
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from seq2seq_jax.errors import UserError, did_you_mean, shortened
from seq2seq_jax.serving.requests import Refusal
from seq2seq_jax.text_files import names_beside

TOKEN_VARIABLE = "SEQ2SEQ_JAX_TOKEN"
SHORTEST_TOKEN = 16  # characters
_TOKEN = re.compile(r"[!-~]+")  # what a header can hold


class Door(NamedTuple):
    """Whom to let in.

    Attributes:
      host: as it was given.
      token: that requests must show, or None for a loopback address.
    """

    host: str
    token: str | None = None

    def check(self, headers: Mapping[str, str], *, is_open: bool) -> None:
        """Raises Refusal where a request may not come in.

        Args:
          headers: of the request, by names in lower case.
          is_open: whether the path is nobody's secret.
        """
        if self.token is None:
            self._check_host(headers.get("host"))
            _check_origin(headers)
        elif not is_open:
            scheme, _, shown = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(shown.strip().encode(), self.token.encode()):
                raise Refusal(401, "This server wants its token: the header Authorization: Bearer TOKEN.")

    def _check_host(self, host: str | None) -> None:
        if host is None:
            raise Refusal(400, "The request has no Host header.")
        name = _host_name(host)
        if name != self.host.lower() and not _is_loopback(name):
            message = f"The Host header names {shortened(host)}, and this server answers on a loopback address alone."
            raise Refusal(421, message)


def _check_origin(headers: Mapping[str, str]) -> None:
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower():
        raise Refusal(403, "Pages of another origin may not use this server.")


def _host_name(host: str) -> str:
    """Returns the name in a Host header, without port and brackets."""
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::\d*)?", host)
    return bracketed[1] if bracketed else host.partition(":")[0].lower()


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def open_door(host: str, port: int, token: str | None) -> tuple[Door, socket.socket]:
    """Takes an address, and says who may come in there. Nobody is listened to yet.

    Raises:
      UserError: there is no such address here, it is in use or not allowed, or it is no loopback address and there is
        no token.
    """
    if not 0 <= port <= 65_535:
        raise UserError(f"--port must be from 0 to 65,535, got {port}.")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no name of a host"
        raise UserError(f"--host {shortened(host)}: {reason}. Give an address of this machine.") from None
    family, kind, protocol, _, address = found[0]
    if token is None and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise UserError(
            f"--host {host} can be reached from other machines: give a token that clients must show, by --token-file"
            f" FILE or in {TOKEN_VARIABLE}; or leave --host out, for this machine alone."
        )
    door = socket.socket(family, kind, protocol)  # by the protocol asyncio knows to send small packets at once
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that ended a moment ago is not in the way
        door.bind(address)
        return Door(host, token), door
    except OSError as error:
        door.close()
        raise UserError(_trouble(host, port, error)) from None


def listen(door: socket.socket, host: str, port: int) -> None:
    """Has clients come in.

    Raises:
      UserError: another program has begun to listen there meanwhile.
    """
    try:
        door.listen(2_048)
    except OSError as error:
        raise UserError(_trouble(host, port, error)) from None


def _trouble(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"--port {port} of {host} is in use; choose another, or 0 for any that is free."
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"--port {port}: this user may not listen there; choose one from 1,024 up."
    return f"--host {host} --port {port}: {error.strerror}."


def read_token(path: Path | None) -> str | None:
    """Returns the token of a file, or else of the environment, or None. Warns where others may read the file.

    Raises:
      UserError: the file cannot be read, or what it holds is no token.
    """
    if path is None:
        found, where = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
        if found is None:
            return None
    else:
        found, where = _first_line(path), str(path)
    if not _TOKEN.fullmatch(found):
        raise UserError(f"{where} must hold a token of letters, digits and signs of ASCII, without blanks.")
    if len(found) < SHORTEST_TOKEN:
        raise UserError(
            f"The token of {where} has {len(found)} characters, and {SHORTEST_TOKEN} are the least that is no guess."
            " Make one with: python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return found


def _first_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            mode, content = os.fstat(file.fileno()).st_mode, file.read(10_000)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.{did_you_mean(path.name, names_beside(path))}") from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    if mode & (stat.S_IRGRP | stat.S_IROTH) and stat.S_ISREG(mode):
        warnings.warn(f"Other users may read the token in {path}; forbid it with chmod 600.", stacklevel=3)
    return content.decode(errors="replace").strip()
