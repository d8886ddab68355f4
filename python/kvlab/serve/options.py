"""What `kvlab serve` can be told. Nothing here needs the extra `serve`."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from kvlab.errors import ConfigError
from kvlab.models import SMOLLM2, cache_root
from kvlab.serve.engine.modes import MODES, Mode, TierSizes
from kvlab.serve.engine.request import EngineOptions

if TYPE_CHECKING:
    from pathlib import Path

Dtype: TypeAlias = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Dtype, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""torch's names of the dtypes."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How a server runs.

    Attributes:
        model: A name, path or hub id (see `kvlab.models.resolve`).
        name: What requests call it; None for ``model``.
        dtype: Of weights and cache.
        threads: Of torch, part of the cache's namespace; None for torch's own number.
        mode: Which tiers there are.
        store: The directory of L3; None for ``store`` in kvlab's cache directory. Only mode ``nvme`` uses it.
        sizes: Of the tiers.
        policy: Which blocks go first (see `Store.open`).
        write_policy: When L3 is written (see `Store.open`).
        quota: Bytes of L3 that each cache salt may take (see `Store.open`); None for no limit.
        remote: URLs of the servers of L4 (see `Store.open`); none for no L4. Not in mode ``baseline``.
        remote_ttl: After which they forget (see `Store.open`).
        remote_timeout: Seconds that they have for an answer (see `Store.open`).
        remote_prefix: What all names there begin with (see `Store.open`).
        remote_cluster: Whether they are nodes of one cluster.
        remote_ca_file: Who may sign their certificates (see `Store.open`).
        remote_certificate_file: The certificate to show to them (see `Store.open`).
        remote_private_key_file: Its private key (see `Store.open`).
        remote_key_file: What payload is encrypted with there (see `Store.open`).
        engine: How the engine works.
        host: The address to listen at.
        port: The port; 0 for a free one.
        api_keys: A file of keys (see `kvlab.serve.api.keys`); None for no keys.
        max_body: The most bytes of a request's body.
        drain_s: Seconds that requests under way have to finish when the server is told to stop.
        vllm_metric_names: Show metrics under vLLM's names, too.

    Raises:
        ConfigError: a value that cannot be.
    """

    model: str = SMOLLM2
    name: str | None = None
    dtype: Dtype = "fp32"
    threads: int | None = None
    mode: Mode = "nvme"
    store: Path | None = None
    sizes: TierSizes = field(default_factory=TierSizes)
    policy: str = "lru"
    write_policy: str = "write_through"
    quota: int | str | None = None
    remote: tuple[str, ...] = ()
    remote_ttl: int | str = "1d"
    remote_timeout: float = 0.25
    remote_prefix: str = "kvlab"
    remote_cluster: bool = False
    remote_ca_file: Path | None = None
    remote_certificate_file: Path | None = None
    remote_private_key_file: Path | None = None
    remote_key_file: Path | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: Path | None = None
    max_body: int = 8 << 20
    drain_s: float = 10.0
    vllm_metric_names: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        if self.mode not in MODES:
            raise ConfigError(f"mode {self.mode!r}: use {', '.join(map(repr, MODES))}")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port {self.port} is not within 0..65535")
        if self.remote and self.mode == "baseline":
            raise ConfigError(
                "remote: mode 'baseline' keeps nothing; use another mode, or no remote"
            )
        if self.drain_s < 0:
            raise ConfigError(f"drain_s = {self.drain_s} is negative")

    @property
    def remote_settings(self) -> dict[str, Any]:
        """What `Store.open` is told of L4."""
        if not self.remote:
            return {}
        return {
            "remote": list(self.remote),
            "remote_ttl": self.remote_ttl,
            "remote_timeout": self.remote_timeout,
            "remote_prefix": self.remote_prefix,
            "remote_cluster": self.remote_cluster,
            "remote_ca_file": self.remote_ca_file,
            "remote_certificate_file": self.remote_certificate_file,
            "remote_private_key_file": self.remote_private_key_file,
            "remote_key_file": self.remote_key_file,
        }

    @property
    def served_name(self) -> str:
        """What requests call the model."""
        return self.model if self.name is None else self.name

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def directory(self) -> Path | None:
        """Where L3 is; None without one."""
        if self.mode != "nvme":
            return None
        return cache_root() / "store" if self.store is None else self.store.expanduser()
