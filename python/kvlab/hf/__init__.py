"""kvlab for transformers: load a model, know its cache, keep and reuse prefixes of it.

This package imports torch and transformers; ``import kvlab`` does not.
"""

from kvlab.hf.attach import attach
from kvlab.hf.cache import KeyValue, PreallocatedCache, PreallocatedLayer
from kvlab.hf.explain import Explanation
from kvlab.hf.fingerprint import fingerprint
from kvlab.hf.layout import LayerShape, ModelLayout, read_layout
from kvlab.hf.load import load
from kvlab.hf.output import GenerateOutput, Prefilled
from kvlab.hf.report import HitTokens, Report
from kvlab.hf.session import Session
from kvlab.hf.stamp import Stamp
from kvlab.hf.support import check_model, refuse_request

__all__ = [
    "Explanation",
    "GenerateOutput",
    "HitTokens",
    "KeyValue",
    "LayerShape",
    "ModelLayout",
    "PreallocatedCache",
    "PreallocatedLayer",
    "Prefilled",
    "Report",
    "Session",
    "Stamp",
    "attach",
    "check_model",
    "fingerprint",
    "load",
    "read_layout",
    "refuse_request",
]
