"""A Redis or Valkey server for a run over a shared tier: one of its own, or a part of one that was named."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kvlab import Store
from kvlab.errors import RemoteError
from kvlab.remote.server import local_server

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TTL", "check_server", "shared_tier"]

TTL = "6h"
"""After which a server that was named forgets what a run left there: no run flushes a server of somebody else."""

_SECONDS = 2.0


@contextmanager
def shared_tier(url: str | None) -> Iterator[dict[str, Any]]:
    """What `Store.open` is told of a shared tier that holds nothing yet.

    Args:
        url: Of a server, on which names of a prefix of their own are used; None to start one for as long as it is
            wanted.

    Raises:
        ConfigError: the URL cannot be used, or there is no server to start.
    """
    settings = {"remote_prefix": f"kvlab-bench-{secrets.token_hex(6)}", "remote_ttl": TTL}
    if url is not None:
        yield {"remote": url, **settings}
        return
    with local_server() as server:
        yield {"remote": server.url, **settings}


def check_server(url: str | None) -> None:
    """Asks a server for a sign of life, before a run takes minutes to find out.

    Args:
        url: Of the server; None for one that the run starts, which is tried.

    Raises:
        ConfigError: the URL cannot be used, or there is no server to start.
        RemoteError: the server does not answer, or lets nobody in.
    """
    if url is None:
        with local_server():
            return
    with Store.open(None, l1="1MiB", l2=0, remote=url, remote_timeout=_SECONDS) as store:
        health = store.remote_health()
    for server in health["servers"] if health is not None else ():
        if server["error"] is not None:
            raise RemoteError(
                f"--remote: {server['address']} does not answer: {server['error']}; start it, mend the URL, or "
                "leave --remote out to have a server started for the run"
            )
