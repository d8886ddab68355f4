"""Servers that a run starts and restarts itself."""

from __future__ import annotations

import asyncio
import shlex
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kvlab.bench.shared import shared_tier
from kvlab.errors import EndpointError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvlab.bench.backend import Mode

__all__ = ["RestartCommand", "Restarter", "StartedServer"]

_STOP_SECONDS = 60.0
_REMOTE = "{remote}"


class Restarter(Protocol):
    """What starts a server again."""

    async def start(self, mode: Mode) -> None:
        """Brings it up in a mode, if it is this object's to bring up."""
        ...

    async def restart(self) -> None:
        """Ends it and starts it again; in mode `remote`, with nothing but what the shared tier has."""
        ...

    async def stop(self) -> None:
        """Ends it, if `start` brought it up."""
        ...

    def check(self) -> None:
        """Raises an `EndpointError` if it is known to have ended."""
        ...

    def describe(self) -> dict[str, Any]:
        """For the report."""
        ...


class RestartCommand:
    """A command of the user's that restarts a server, such as `systemctl restart vllm`.

    Args:
        command: Split as a shell would, and run without one.
        seconds: How long it may take.

    Raises:
        InvalidArgumentError: there is no command in it.
    """

    def __init__(self, command: str, *, seconds: float = 300.0) -> None:
        self._command = split(command, "--restart-command")
        self._seconds = seconds

    async def start(self, mode: Mode) -> None:
        """The server is up already."""
        del mode

    async def restart(self) -> None:
        """Runs the command and waits for its end.

        Raises:
            EndpointError: it failed, or took too long.
        """
        try:
            done = await asyncio.to_thread(
                subprocess.run,
                self._command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=self._seconds,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EndpointError(
                f"--restart-command {shlex.join(self._command)}: {error}", kind="connect"
            ) from None
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()[-300:]
            raise EndpointError(
                f"--restart-command {shlex.join(self._command)}: exit code {done.returncode}: {said}",
                kind="connect",
            )

    async def stop(self) -> None:
        """The server stays up."""

    def check(self) -> None:
        """Nothing is known of it."""

    def describe(self) -> dict[str, Any]:
        """The command's name."""
        return {"restarted_by": Path(self._command[0]).name}


class StartedServer:
    """A server that the run starts for each mode, with an empty directory for its store.

    Args:
        command: With `{mode}` where the mode goes and `{store}` where the directory goes. In mode `remote` the word
            `{remote}` stands for the options of `kvlab serve` that name the shared tier, and `{mode}` for
            `cpu_offload`; in others it stands for nothing.
        said: What the report says of it.
        remote: The server of the shared tier; None to start one.

    Raises:
        InvalidArgumentError: there is no command in it.
    """

    def __init__(
        self, command: Sequence[str], said: dict[str, Any], remote: str | None = None
    ) -> None:
        if not command:
            raise InvalidArgumentError("--serve: is empty; give the command of a server")
        self._command = command
        self._remote = remote
        self._shared = ExitStack()
        self._settings: dict[str, Any] = {}
        self._starts = 0
        self._said = said
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._mode: Mode = "baseline"

    async def start(self, mode: Mode) -> None:
        """Starts it with nothing stored.

        Raises:
            EndpointError: it cannot be started.
            InvalidArgumentError: mode `remote` with a command that has no place for the shared tier.
            ConfigError: there is no server for the shared tier to start.
        """
        self._mode = mode
        self._settings = {}
        if mode == "remote":
            if _REMOTE not in self._command:
                raise InvalidArgumentError(
                    f"mode remote: put the word {_REMOTE} into --serve, for the options that name the shared tier"
                )
            self._settings = self._shared.enter_context(shared_tier(self._remote))
        self._folder = tempfile.TemporaryDirectory(prefix="kvlab-bench-")
        self._launch()

    async def restart(self) -> None:
        """Ends it and starts it over the same directory; in mode `remote` over a new one."""
        await self._end()
        self._launch()

    async def stop(self) -> None:
        """Ends it and removes what it stored."""
        await self._end()
        self._shared.close()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def check(self) -> None:
        """Whether it still runs.

        Raises:
            EndpointError: it ended; with the end of what it said.
        """
        process = self._process
        if process is not None and process.poll() is not None:
            said = self._log.read_text("utf-8", "replace").strip()[-600:]
            raise EndpointError(
                f"the server ended with exit code {process.returncode}: {said}", kind="garbage"
            )

    def describe(self) -> dict[str, Any]:
        """What it was started as."""
        return self._said

    @property
    def _log(self) -> Path:
        if self._folder is None:
            raise EndpointError("the server was not started", kind="connect")
        return Path(self._folder.name) / "server.log"

    def _launch(self) -> None:
        log = self._log
        self._starts += 1
        store = f"store-{self._starts}" if self._settings else "store"
        fields = {
            "mode": "cpu_offload" if self._settings else self._mode,
            "store": str(log.parent / store),
        }
        command: list[str] = []
        for word in self._command:
            if word != _REMOTE:
                command.append(word.format(**fields))
                continue
            for name, value in self._settings.items():
                command += [f"--{name.replace('_', '-')}", value]
        with log.open("ab") as out:
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
                )
            except OSError as error:
                raise EndpointError(
                    f"--serve: {command[0]} cannot be started: {error}", kind="connect"
                ) from None

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, _STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)


def split(command: str, option: str) -> list[str]:
    """A command's words.

    Raises:
        InvalidArgumentError: there are none, or a quote is open.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InvalidArgumentError(f"{option} {command}: {error}") from None
    if not words:
        raise InvalidArgumentError(f"{option}: is empty; give a command")
    return words
