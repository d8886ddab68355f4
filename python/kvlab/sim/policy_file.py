"""Policies of your own by name: `path/to/file.py:ClassName`, for page mode."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from kvlab.errors import ConfigError, InvalidArgumentError, KvlabError
from kvlab.sim.policy import PolicyBase

__all__ = ["HOOKS", "PolicyFile", "is_policy_file"]

HOOKS = tuple(name for name, hook in vars(PolicyBase).items() if callable(hook))
"""What a policy may override."""


def is_policy_file(text: str) -> bool:
    """Whether a policy is named by a file, rather than by its own name."""
    return text.partition(":")[0].endswith(".py")


class PolicyFile:
    """A subclass of `PolicyBase` in a Python file. The file is run once; each call makes a fresh policy.

    Args:
        text: `path/to/file.py:ClassName`.

    Raises:
        InvalidArgumentError: there is no such file, or what it runs raises.
        ConfigError: no class is named, there is none of that name, or it is no `PolicyBase`.
    """

    def __init__(self, text: str) -> None:
        file, _, name = text.partition(":")
        self._path = Path(file).absolute()
        self.text = f"{self._path.name}:{name}"
        """The policy as it was named, without the folder."""
        if not self._path.is_file():
            raise InvalidArgumentError(f"policy {text}: there is no file {file}")
        found = self._run(text)
        classes = [
            key
            for key, value in vars(found).items()
            if isinstance(value, type)
            and issubclass(value, PolicyBase)
            and value.__module__ == found.__name__
        ]
        known = f"policies in it: {', '.join(classes) or 'none'}"
        made = getattr(found, name, None) if name else None
        if made is None:
            missing = f"{file} has no class {name}" if name else "name its class, as FILE.py:CLASS"
            raise ConfigError(f"policy {text}: {missing}; {known}")
        if not (isinstance(made, type) and issubclass(made, PolicyBase)):
            raise ConfigError(
                f"policy {text}: {name} is no subclass of kvlab.sim.PolicyBase; {known}"
            )
        self._class = made

    def _run(self, text: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"kvlab_policy_{id(self)}", self._path)
        if spec is None or spec.loader is None:
            raise InvalidArgumentError(f"policy {text}: {self._path} is no Python file")
        module = importlib.util.module_from_spec(spec)
        # Dataclasses and typing look their module up there while it runs.
        sys.modules[spec.name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[spec.name]
            raise InvalidArgumentError(
                f"policy {text}: running the file raised {self._told(error)}"
            ) from error
        return module

    @property
    def name(self) -> str:
        """What results call it."""
        return self._class.name or self._class.__name__

    def __call__(self) -> PolicyBase:
        """A fresh policy.

        Raises:
            InvalidArgumentError: the class cannot be made without arguments.
        """
        try:
            return self._class()
        except Exception as error:
            raise InvalidArgumentError(
                f"policy {self.text}: {self._class.__name__}() raised {self._told(error)}; "
                "it is made without arguments"
            ) from error

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Names the hook in what a hook raises, as one error."""
        try:
            yield
        except KvlabError:
            raise
        except Exception as error:
            message = f"policy {self.text}: {_blame(error)} {self._told(error)}"
            raise InvalidArgumentError(message) from error

    def _told(self, error: Exception) -> str:
        """An exception in one line, with the line of the file that it came from."""
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename) == self._path
        ]
        what = " ".join(f"{type(error).__name__}: {error}".split())
        return f"{what} (line {lines[-1]})" if lines else what


def _blame(error: Exception) -> str:
    """The hook that raised, or that gave what the simulator could not use."""
    frames = traceback.extract_tb(error.__traceback__)
    hooks = [frame.name for frame in frames if frame.name in HOOKS]
    if hooks:
        return f"{hooks[-1]} raised"
    if any(f".{hook}()" in str(error) for hook in HOOKS):
        return "a hook has other parameters than PolicyBase has:"
    if isinstance(error, AttributeError):
        return "select_eviction_candidate gave no page:"
    return "maybe_prefetch gave no numbers of pages:"
