"""A server under many clients, of which some go away: `kvlab serve` as a process, checked answer by answer.

``python benches/python/serve_soak.py --clients 32 --requests 1000``

Prompts share prefixes; each is first answered by ``model.generate`` alone, greedily. Then the clients ask at once, with
answers of 1 to 16 tokens, streamed or whole; some close the stream in the middle of an answer, some go away before
its first token. Every answer that came has to be the beginning of what the model alone says. At the end nothing may
be held in the store, nothing may run, and the server's memory is compared with what it was after the warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import torch
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import Progress

import kvlab.hf

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST = 16
"""The most tokens of an answer."""
WARM_UP = 0.2
"""The share of the requests after which memory is taken as settled."""
PATIENCE = 300.0
"""Seconds that a client waits."""


@dataclass
class Prompt:
    """A prompt and what the model alone answers."""

    ids: list[int]
    answer: list[int]
    texts: list[str] = field(default_factory=list)


@dataclass
class Tally:
    """What became of the requests."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    resident: list[tuple[int, int]] = field(default_factory=list)


def prompts(model: Any, tokenizer: Any, count: int, random_numbers: random.Random) -> list[Prompt]:
    """Prompts of 60 to 600 tokens, eight of which begin alike each time, with the model's own answers."""
    words = [word for word in Path(__file__).read_text().split() if word.isalpha()]
    found = []
    for place in range(count):
        shared = random.Random(place // 8)
        text = " ".join(shared.choices(words, k=shared.randint(40, 350)))
        own = " ".join(random_numbers.choices(words, k=random_numbers.randint(8, 60)))
        ids = tokenizer(f"{text}\n{own}\n")["input_ids"]
        with torch.inference_mode():
            out = model.generate(torch.tensor([ids]), max_new_tokens=LONGEST, do_sample=False)
        prompt = Prompt(ids, out[0, len(ids) :].tolist())
        prompt.texts = [
            tokenizer.decode(prompt.answer[:tokens], skip_special_tokens=True)
            for tokens in range(LONGEST + 1)
        ]
        found.append(prompt)
    return found


async def ask(
    client: httpx.AsyncClient, model: str, prompt: Prompt, draw: random.Random, tally: Tally
) -> None:
    """One request, as one of five kinds of client."""
    tokens = draw.randint(1, LONGEST)
    body = {"model": model, "prompt": prompt.ids, "max_tokens": tokens, "temperature": 0}
    kind = draw.choices(("whole", "stream", "leave", "vanish"), (4, 4, 1, 1))[0]
    expected = prompt.texts[tokens]
    if kind == "whole":
        answer = await client.post("/v1/completions", json=body)
        check(answer.status_code == 200, f"status {answer.status_code}: {answer.text}", tally)
        text = answer.json()["choices"][0]["text"]
        check(text == expected, f"{text!r} instead of {expected!r}", tally)
    elif kind == "vanish":
        try:
            await client.post("/v1/completions", json=body, timeout=draw.uniform(0.01, 2.0))
        except httpx.TimeoutException:
            kind = "vanished"
    else:
        leave = draw.randint(1, tokens) if kind == "leave" else None
        text, chunks = "", 0
        request = client.build_request("POST", "/v1/completions", json={**body, "stream": True})
        answer = await client.send(request, stream=True)
        try:
            check(answer.status_code == 200, f"status {answer.status_code}", tally)
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                check("error" not in event, f"an error in the stream: {line}", tally)
                text += "".join(choice["text"] for choice in event.get("choices", ()))
                chunks += 1
                if chunks == leave:
                    break
        finally:
            await answer.aclose()
        right = expected.startswith(text) if leave is not None else text == expected
        check(right, f"{text!r} instead of {expected!r}", tally)
    tally.outcomes[kind] += 1


def check(holds: bool, otherwise: str, tally: Tally) -> None:
    """Notes what does not hold."""
    if not holds:
        tally.wrong.append(otherwise)


def resident_kib(pid: int) -> int:
    """The resident memory of a process, in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError(f"process {pid} has no VmRSS")


def measures(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """The samples of a `/metrics` page."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


async def drive(
    asked: argparse.Namespace, url: str, pid: int, name: str, all_prompts: list[Prompt]
) -> Tally:
    """All clients."""
    tally = Tally()
    left = asked.requests
    done = 0
    limits = httpx.Limits(max_connections=asked.clients + 4)
    with Progress(console=Console(stderr=True), disable=asked.json) as progress:
        bar = progress.add_task("requests", total=asked.requests)

        async def one(number: int, client: httpx.AsyncClient) -> None:
            nonlocal left, done
            draw = random.Random(f"{asked.seed} {number}")
            while left > 0:
                left -= 1
                await ask(client, name, draw.choice(all_prompts), draw, tally)
                done += 1
                if done % max(1, asked.requests // 20) == 0:
                    tally.resident.append((done, resident_kib(pid)))
                progress.advance(bar)

        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as client:
            await asyncio.gather(*(one(number, client) for number in range(asked.clients)))
            await settled(client, tally)
    return tally


async def settled(client: httpx.AsyncClient, tally: Tally) -> None:
    """Waits until nothing runs, then looks at what the store still holds."""
    deadline = time.monotonic() + 60
    while True:
        found = list(measures((await client.get("/metrics")).text))
        busy = {
            name + str(labels): value
            for name, labels, value in found
            if value and (name.startswith("kvlab:num_requests") or name == "kvlab:tier_held_bytes")
        }
        if not busy or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.2)
    check(not busy, f"held or running a minute after the last request: {busy}", tally)
    for name, _, value in found:
        if name in {"kvlab:corrupt_blocks_total", "kvlab:requests_failed_total"}:
            check(value == 0, f"{name} is {value}", tally)


def main() -> None:
    """Serves, asks, prints; fails if anything was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()

    model, tokenizer = kvlab.hf.load(asked.model)
    all_prompts = prompts(model, tokenizer, asked.prompts, random.Random(asked.seed))
    del model
    with tempfile.TemporaryDirectory(prefix="kvlab-soak-") as store:
        command = [
            sys.executable,
            "-m",
            "kvlab",
            "serve",
            "--model",
            asked.model,
            "--json",
            "--port",
            "0",
        ]
        command += ["--store", f"{store}/store", "--l1", "256MiB", "--l2", "256MiB", "--l3", "2GiB"]
        command += ["--max-queue", str(asked.clients)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            started = json.loads(server.stdout.readline() if server.stdout else "")
            began = time.monotonic()
            tally = asyncio.run(
                drive(asked, started["url"], started["pid"], started["model"], all_prompts)
            )
            seconds = time.monotonic() - began
        finally:
            server.terminate()
            ended = server.wait(60)
    check(ended == 0, f"the server ended with status {ended}", tally)
    warm = next(kib for done, kib in tally.resident if done >= WARM_UP * asked.requests)
    result = {
        "clients": asked.clients,
        "requests": asked.requests,
        "seconds": round(seconds, 1),
        "outcomes": dict(sorted(tally.outcomes.items())),
        "wrong": tally.wrong,
        "resident_mib_after_warm_up": round(warm / 1024),
        "resident_mib_at_the_end": round(tally.resident[-1][1] / 1024),
        "resident_mib": [round(kib / 1024) for _, kib in tally.resident],
    }
    Console(soft_wrap=True).print_json(data=result)
    sys.exit(1 if tally.wrong else 0)


if __name__ == "__main__":
    main()
