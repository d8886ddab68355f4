"""Links with a queue each, and what kvlab's own software adds to the wire."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kvlab.errors import InvalidArgumentError

__all__ = ["BLOCK_TOKENS", "WIRE_SHARE", "Link", "Network", "transfer"]

WIRE_SHARE = 1448 / 1538
"""Payload of a full Ethernet frame: 1,448 bytes of TCP payload (with time stamps) take 1,538 on the wire."""

BLOCK_TOKENS = 16
"""Tokens of a block of the live store: what a look-up has a key for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Links and software between machines and servers.

    What is measured is of kvlab's own reads (`benches/python/fleet_costs.py`, artifacts/fleet/measured.json): two
    cores, SmolLM2's runs, client and server on one machine.

    Attributes:
        machine_gigabits: Of each machine's link, in each direction.
        server_gigabits: Of each server's.
        wire_share: The share of a link that payload gets.
        round_trip: Seconds; a look-up takes two, a read one. Assumed: machines of one rack or row.
        key_seconds: What a look-up takes more for each block of 16 tokens; measured.
        read_seconds: What a read takes more than its round trip and its bytes; measured.
        client_rate: Bytes a second that the software of a machine reads or writes at most.
        server_rate: Bytes a second that a server's software answers at most.

    Raises:
        InvalidArgumentError: a speed that is not above 0, or a time below 0.
    """

    machine_gigabits: float = 25.0
    server_gigabits: float = 25.0
    wire_share: float = WIRE_SHARE
    round_trip: float = 2e-4
    key_seconds: float = 5.8e-6
    read_seconds: float = 5.8e-3
    client_rate: float = math.inf
    server_rate: float = math.inf

    def __post_init__(self) -> None:
        for name in (
            "machine_gigabits",
            "server_gigabits",
            "wire_share",
            "client_rate",
            "server_rate",
        ):
            if not getattr(self, name) > 0:
                raise InvalidArgumentError(f"{name} = {getattr(self, name)}: more than 0")
        for name in ("round_trip", "key_seconds", "read_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidArgumentError(f"{name} = {getattr(self, name)}: seconds from 0 on")

    @property
    def machine_bytes(self) -> float:
        """Payload bytes a second of a machine, of its link or its software, whichever is slower."""
        return min(self.machine_gigabits * self.wire_share * 1e9 / 8, self.client_rate)

    @property
    def server_bytes(self) -> float:
        """The same of one server."""
        return min(self.server_gigabits * self.wire_share * 1e9 / 8, self.server_rate)

    def look_up(self, tokens: int) -> float:
        """Seconds to ask for the blocks of so many tokens."""
        return 2 * self.round_trip + self.key_seconds * (tokens // BLOCK_TOKENS)


class Link:
    """One direction of a link: first come, first served, at a rate.

    Attributes:
        rate: Bytes a second.
        free_at: When all that it has taken on is sent.
        sent: Bytes that it has taken on.
    """

    __slots__ = ("free_at", "rate", "sent")

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.free_at = 0.0
        self.sent = 0

    def send(self, at: float, count: int) -> float:
        """Takes on so many bytes at a time no earlier than that of the call before; when they begin to go."""
        start = max(at, self.free_at)
        self.free_at = start + count / self.rate
        self.sent += count
        return start


def transfer(source: Link, target: Link, at: float, count: int, most: float = math.inf) -> float:
    """Sends bytes over two links, the second of which takes them as they come; when the last byte is there.

    Args:
        source: Of the sender.
        target: Of the receiver.
        at: No earlier than the call before.
        count: Bytes.
        most: Bytes a second that this transfer gets of the first link, though all of it be free.
    """
    start = source.send(at, count)
    arriving = target.send(start, count)
    return max(start + count / min(source.rate, most), arriving + count / target.rate)
