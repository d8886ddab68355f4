"""The engine of the server: one thread owns the model, requests go through it side by side.

What is here does not import torch; `kvlab.serve.engine.engine.Engine` does.
"""

from kvlab.serve.engine.request import (
    Admitted,
    Cancelled,
    Chunk,
    EngineCounters,
    EngineObserver,
    EngineOptions,
    EngineState,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    Handle,
    Phase,
    Sampling,
    SequenceState,
    Sink,
    Source,
    Span,
    TierTokens,
    Timings,
    Usage,
)

__all__ = [
    "Admitted",
    "Cancelled",
    "Chunk",
    "EngineCounters",
    "EngineObserver",
    "EngineOptions",
    "EngineState",
    "Event",
    "Failed",
    "FinishReason",
    "Finished",
    "GenerationRequest",
    "Handle",
    "Phase",
    "Sampling",
    "SequenceState",
    "Sink",
    "Source",
    "Span",
    "TierTokens",
    "Timings",
    "Usage",
]
