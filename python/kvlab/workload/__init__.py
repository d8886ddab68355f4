"""Workloads: what agents and people send to a model, generated or recorded, to be run and compared."""

from kvlab.workload.schema import Header, Message, Workload, WorkloadRequest, dump, dumps, load

__all__ = ["Header", "Message", "Workload", "WorkloadRequest", "dump", "dumps", "load"]
