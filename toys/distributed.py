"""A shared tier: which server holds a key, what moves when one dies or joins, and when a network beats computing.

Many machines share one cache on N servers, and nobody keeps a list of who has what. **Rendezvous hashing**: each
client scores every server with hash(server, key) and takes the highest. When a server dies, its keys alone go to the
next in their order, spread over all others; when one joins, it takes its share and nothing else moves. The key's hash
modulo N is as even, but another N gives nearly every key another server: a cache that is whole and cannot be found.

**Break-even**: fetching a prefix takes two round trips and its bytes over the network; computing it takes 2 operations
for each weight and token, and attention's square. So there is a bandwidth above which any prefix is worth fetching,
and below it a length from which one is. This part is computed from the inputs below, not measured, and is kind to the
network: it has the line to itself and loses nothing to a protocol, a codec or a server.

Source: Thaler, Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", IEEE/ACM Transactions on Networking
6(1), 1998 (https://doi.org/10.1109/90.663936).

    python toys/distributed.py [--quick] [--json] [--out distributed.svg]
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING

from common import Results, arguments, conclude, panels

from kvlab.sizing import kv_size, shape_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.figure import Figure

    Placing = Callable[[str, Sequence[str]], str]

ROUND_TRIPS = 2 * 0.0005  # seconds: where the blocks are, then their bytes
GIGABITS = (1, 2.5, 10, 25, 40, 100)
PREFIXES = (2_048, 32_768)
LONGEST = 131_072  # tokens
# Model, dtype, width of all query heads, operations a second of what computes it, and where that number is from.
MACHINES = (
    ("smollm2-135m", "float32", 576, 0.15e12, "two cores; the README's prefill of 2,048 tokens"),
    ("llama-3.1-8b", "bfloat16", 4096, 0.4 * 989.4e12, "40 % (assumed) of one H100 on paper"),
    ("llama-3.1-70b", "bfloat16", 8192, 1.6 * 989.4e12, "four of them, nothing lost between"),
)


def score(server: str, key: str) -> int:
    """A number that only this server has for this key."""
    return int.from_bytes(blake2b(f"{server} {key}".encode(), digest_size=8).digest(), "big")


def rendezvous(key: str, servers: Sequence[str]) -> str:
    """The server with the highest score."""
    return max(servers, key=lambda server: score(server, key))


def modulo(key: str, servers: Sequence[str]) -> str:
    """The server at the place of the key's hash modulo their number."""
    return servers[score("", key) % len(servers)]


def change(place: Placing, keys: list[str], count: int) -> Results:
    """Balance over `count` servers, and the share of keys that move when one dies and when one joins."""
    servers = [f"server-{number}" for number in range(count + 1)]
    joined, dead = servers[-1], servers[count // 2]
    before = {key: place(key, servers[:-1]) for key in keys}
    without = {key: place(key, [s for s in servers[:-1] if s != dead]) for key in keys}
    more = {key: place(key, servers) for key in keys}
    held = Counter(before.values())
    return {
        "servers": count,
        "fullest": max(held.values()) * count / len(keys),
        "dies": sum(before[key] != without[key] for key in keys) / len(keys),
        "joins": sum(before[key] != more[key] for key in keys) / len(keys),
        "needless": sum(before[key] not in {dead, without[key]} for key in keys)
        + sum(more[key] not in {joined, before[key]} for key in keys),
    }


def break_even(model: str, dtype: str, width: int, rate: float, source: str) -> Results:
    """Fetch against compute for one model: at each bandwidth, and the shortest prefix worth fetching."""
    shape = replace(shape_of(model), dtype=dtype)
    if shape.params is None:
        raise AssertionError(f"{model} has no number of parameters")
    token_bytes = kv_size(shape).kv_bytes_per_token
    linear = 2 * shape.params / rate
    square = 2 * shape.layers * width / rate  # scores and values over the half that the mask leaves
    computing = [prefix * linear + prefix * prefix * square for prefix in PREFIXES]
    rows = []
    for gigabits in GIGABITS:
        wire = token_bytes * 8 / (gigabits * 1e9)
        # square n^2 - (wire - linear) n = the round trips, solved for n.
        slope = wire - linear
        root = (slope + math.sqrt(slope * slope + 4 * square * ROUND_TRIPS)) / (2 * square)
        fetching = [ROUND_TRIPS + prefix * wire for prefix in PREFIXES]
        faster = [took / instead for took, instead in zip(computing, fetching, strict=True)]
        shortest = math.ceil(root) if root <= LONGEST else None
        rows.append({"gigabits": gigabits, "shortest_tokens": shortest, "times_faster": faster})
    return {
        "model": model,
        "dtype": dtype,
        "kv_bytes_per_token": token_bytes,
        "flops_per_second": rate,
        "flops_source": source,
        "compute_seconds": computing,
        "any_prefix_gigabits": token_bytes * 8 / linear / 1e9,
        "rows": rows,
    }


def measure(*, quick: bool = False) -> Results:
    """Places keys on 2 to 32 servers both ways, and computes the break-even of three models."""
    names = [f"run {number}" for number in range(500 if quick else 5_000)]
    counts = (2, 4, 16) if quick else (2, 4, 8, 16, 32)
    placed = {
        place.__name__: [change(place, names, count) for count in counts]
        for place in (rendezvous, modulo)
    }
    if any(row["needless"] for row in placed["rendezvous"]):
        raise AssertionError(f"rendezvous hashing moved a key that could stay: {placed}")
    return {
        "keys": len(names),
        "placed": placed,
        "prefixes": list(PREFIXES),
        "round_trip_seconds": ROUND_TRIPS,
        "computed": [break_even(*machine) for machine in MACHINES],
    }


def tell(results: Results) -> None:
    """Both parts."""
    print(f"{results['keys']:,} keys on N servers; fullest: the fullest server against the mean\n")
    print("             rendezvous                        modulo")
    print("   N" + 2 * "   fullest   one dies   one joins")
    for rows in zip(results["placed"]["rendezvous"], results["placed"]["modulo"], strict=True):
        cells = [f"{r['fullest']:10.2f}{r['dies']:11.1%}{r['joins']:12.1%}" for r in rows]
        print(f"{rows[0]['servers']:4}" + "".join(cells))
    trips = results["round_trip_seconds"] * 1e3
    print(
        "\ncomputed, not measured: how many times faster to fetch than to compute (below 1: slower),"
    )
    print(f"and the shortest prefix that is worth fetching; round trips of {trips:g} ms together")
    for found in results["computed"]:
        size, rate = found["kv_bytes_per_token"], found["flops_per_second"] / 1e12
        print(f"\n{found['model']}, {found['dtype']}: {size:,} bytes a token, {rate:g} TFLOP/s")
        print(f"({found['flops_source']}); any from {found['any_prefix_gigabits']:.2g} Gb/s")
        heads = [f"{prefix:,} tokens" for prefix in results["prefixes"]]
        print("  Gb/s" + "".join(f"{head:>17}" for head in [*heads, "shortest"]))
        for row in found["rows"]:
            times = "".join(f"{each:17.2f}" for each in row["times_faster"])
            print(f"{row['gigabits']:6g}{times}{row['shortest_tokens'] or 'none':>17}")


def draw(results: Results) -> Figure:
    """What moves when a server dies, and fetch against compute over the bandwidth."""
    figure, (moved, pays) = panels(2)
    for name, rows in results["placed"].items():
        counts = [row["servers"] for row in rows]
        moved.plot(counts, [100 * row["dies"] for row in rows], "o-", label=name)
    moved.set_xscale("log", base=2)
    moved.set_xticks(counts, [str(count) for count in counts])
    moved.set(title="One of N servers dies", xlabel="servers", ylabel="keys that move, %")
    moved.legend(fontsize=8)
    for at, found in enumerate(results["computed"]):
        for nth, prefix in enumerate(results["prefixes"]):
            pays.plot(
                [row["gigabits"] for row in found["rows"]],
                [row["times_faster"][nth] for row in found["rows"]],
                "o-" if nth == 0 else "s--",
                color=f"C{at}",
                ms=3,
                label=f"{found['model']}, {prefix:,} tokens",
            )
    pays.axhline(1, color="black", linewidth=1)
    pays.set(title="Is it worth fetching? (computed)", xlabel="Gb/s", xscale="log", yscale="log")
    pays.set_ylabel("compute time / fetch time")
    pays.set_xticks(GIGABITS, [f"{gigabits:g}" for gigabits in GIGABITS])
    pays.minorticks_off()
    pays.set_ylim(top=3e5)
    pays.legend(fontsize=7, loc="upper left")
    return figure


def main() -> None:
    """Places, computes, tells and draws."""
    options = arguments(__doc__).parse_args()
    conclude(options, measure(quick=options.quick), tell, draw)


if __name__ == "__main__":
    main()
