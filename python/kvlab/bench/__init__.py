"""Runs of workloads against the cache, or against any OpenAI-compatible server, and what came out of them.

`run` sends the requests of a workload to a backend (`synthetic`, `local` or `live`), `report` keeps what came back,
`metrics` makes figures of it under the names of `vllm bench serve`, and `compare` sets reports side by side.
"""
