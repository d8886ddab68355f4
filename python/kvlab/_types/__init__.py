"""What the dictionaries that `kvlab` hands out hold: plain types, for annotations."""

from __future__ import annotations

from typing import Literal

from kvlab._types.costs import (
    Choice,
    ChoiceCounts,
    CostStats,
    Cut,
    PrefillCost,
    ReadCost,
    Restored,
)
from kvlab._types.inspection import (
    Damage,
    Exported,
    Imported,
    IndexReport,
    Inspection,
    NamespaceReport,
    PromptExplanation,
    RecoveryReport,
    RowsDropped,
    Scrubbed,
    SegmentReport,
    TreeDivergence,
    UnreadableFile,
    Verification,
)
from kvlab._types.remote import (
    RemoteErrors,
    RemoteHealth,
    RemoteRefusals,
    RemoteStats,
    ServerHealth,
    ServerStats,
)
from kvlab._types.tiers import (
    BlockStoreStats,
    BufferStats,
    CacheStats,
    L1Stats,
    PoolStats,
    PrefetchProgress,
    PrefetchStats,
    RadixStats,
    Refusals,
    ResidentStats,
    StoreStats,
    TierStats,
)

Tier = Literal["l2", "l3", "l4", "pending"]
RestoreMode = Literal["always", "auto", "never"]

__all__ = [
    "BlockStoreStats",
    "BufferStats",
    "CacheStats",
    "Choice",
    "ChoiceCounts",
    "CostStats",
    "Cut",
    "Damage",
    "Exported",
    "Imported",
    "IndexReport",
    "Inspection",
    "L1Stats",
    "NamespaceReport",
    "PoolStats",
    "PrefetchProgress",
    "PrefetchStats",
    "PrefillCost",
    "PromptExplanation",
    "RadixStats",
    "ReadCost",
    "RecoveryReport",
    "Refusals",
    "RemoteErrors",
    "RemoteHealth",
    "RemoteRefusals",
    "RemoteStats",
    "ResidentStats",
    "RestoreMode",
    "Restored",
    "RowsDropped",
    "Scrubbed",
    "SegmentReport",
    "ServerHealth",
    "ServerStats",
    "StoreStats",
    "Tier",
    "TierStats",
    "TreeDivergence",
    "UnreadableFile",
    "Verification",
]
