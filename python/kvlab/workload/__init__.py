"""Workloads: what agents and people send to a model, generated or recorded, to be run and compared."""

from kvlab.workload.reuse import IdealReuse, ideal_reuse
from kvlab.workload.schedule import starts
from kvlab.workload.schema import Header, Message, Workload, WorkloadRequest, dump, dumps, load
from kvlab.workload.tokens import ChatTokenizer, ModelTokenizer, tokenizer

__all__ = [
    "ChatTokenizer",
    "Header",
    "IdealReuse",
    "Message",
    "ModelTokenizer",
    "Workload",
    "WorkloadRequest",
    "dump",
    "dumps",
    "ideal_reuse",
    "load",
    "starts",
    "tokenizer",
]
