"""How many questions a second does the service answer, how late, and with how much memory?

    $ python benchmarks/service.py [--quick] [--seconds 60] [--rate 500]

A service as `vitfit serve` starts it, in a process of its own, and a client in another one, on the same machine: DeiT-B
with made-up saliency on the shipped CPU table, so that the frontier has tens of thousands of answers. Questions:

    budgets    POST /v1/architectures/search, another budget each time, at a fixed rate: one is sent when its time has
               come, whether earlier ones were answered or not, and its latency counts from that time
    at most    the same over eight connections, each asking as soon as it was answered
    estimates  POST /v1/latency/estimate of 1,000 different architectures on two targets
    memory     resident set of the service after 10,000 requests and after 100,000, half of them estimates

The client speaks HTTP/1.1 on kept connections itself: it shares the cores, and a comfortable one would take half of
them.
"""

import argparse
import asyncio
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import numpy as np
from common import print_goal, print_machine, spread
from frontier import made_up

from api.network import free_port
from search.saliency import save_saliency
from vit.presets import preset

TARGET = "amd-epyc-1t-eager-fp32-b1-n197"
CONNECTIONS = 8


class Service(NamedTuple):
    url: str
    pid: int
    ready_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="DeiT-T, seconds: figures mean nothing")
    parser.add_argument("--seconds", type=float, default=60.0, help="of questions at a fixed rate")
    parser.add_argument("--rate", type=float, default=500.0, help="questions a second")
    parser.add_argument("--requests", type=int, default=100_000, help="of the memory's figure")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(asyncio.run(load(json.loads(options.load)))))
        return
    if options.quick:
        options.seconds, options.rate, options.requests = 2.0, 50.0, 500
    print_machine("fastapi", "uvicorn", "pydantic")
    with tempfile.TemporaryDirectory() as text:
        measure(Path(text), options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    (folder / "saliencies").mkdir()
    arch = preset("deit-t" if options.quick else "deit-b")
    save_saliency(made_up(arch, seed=0), folder / "saliencies" / "made-up.safetensors")
    starts = []
    for _ in range(1 if options.quick else 5):
        with service(folder) as found:
            starts.append(found.ready_s)
            idle_mb = resident_mb(found.pid)
    print(f"start to ready {spread(starts)} s; idle {idle_mb:.0f} MB resident")
    print_goal("service-ready-seconds", float(np.median(starts)), 2, at_least=False)
    print_goal("service-idle-mb", idle_mb, 200, at_least=False)

    with service(folder) as found:
        question = {"saliency": "made-up", "target": TARGET, "multiples": {"embed_dim": 16}}
        started = time.perf_counter()
        first = ask(found.url, "/v1/architectures/search", question | {"speedup": 2.0})
        built = time.perf_counter() - started
        full_ms = first["full_ms"]
        print(f"first budget, with its frontier: {built:.2f} s")
        budgets = [question | {"budget_ms": round(full_ms * share, 4)} for share in np.linspace(0.2, 0.95, 997)]

        ask_many(found.url, "/v1/architectures/search", budgets, seconds=2.0, rate=100.0)
        run = ask_many(found.url, "/v1/architectures/search", budgets, seconds=options.seconds, rate=options.rate)
        shown = ", ".join(f"p{p} {np.percentile(run['ms'], p):.2f}" for p in (50, 90, 99, 99.9))
        print(f"budgets at {options.rate:.0f}/s for {options.seconds:.0f} s: {shown} ms; {run['errors']} errors")
        if not options.quick:
            print_goal("budgets-p99-ms", float(np.percentile(run["ms"], 99)), 10, at_least=False)
            print_goal("budgets-errors", run["errors"], 0, at_least=False)
        run = ask_many(found.url, "/v1/architectures/search", budgets, seconds=options.seconds / 4, rate=0.0)
        rate = len(run["ms"]) / run["seconds"]
        print(
            f"at most: {rate:.0f} budgets/s over {CONNECTIONS} connections, p50 {np.percentile(run['ms'], 50):.2f} ms"
        )

        thousand = {"targets": ["macs", TARGET], "architectures": architectures(1000)}
        times = []
        for _ in range(3 if options.quick else 15):
            started = time.perf_counter()
            ask(found.url, "/v1/latency/estimate", thousand)
            times.append(1e3 * (time.perf_counter() - started))
        print(f"estimates of 1,000 architectures on two targets: {spread(times)} ms a request")

    with service(folder) as found:
        mixed = [
            *budgets[:100],
            *({"targets": [TARGET], "architectures": [a]} for a in thousand["architectures"][:100]),
        ]
        memory = []
        for count in (options.requests // 10, options.requests - options.requests // 10):
            run = ask_many(found.url, "", mixed, count=count)
            memory.append(resident_mb(found.pid))
            errors = run["errors"]
        growth = 100 * (memory[1] / memory[0] - 1)
        print(
            f"memory: {memory[0]:.0f} MB after {options.requests // 10:,} requests, {memory[1]:.0f} MB after "
            f"{options.requests:,} ({growth:+.1f} %); {errors} errors"
        )
        if not options.quick:
            print_goal("memory-growth-percent", growth, 5, at_least=False)


@contextmanager
def service(folder: Path) -> Iterator[Service]:
    """`vitfit serve` on a data folder, ready."""
    port = free_port()
    command = [sys.executable, "-m", "api.cli", "serve", "--port", str(port), "--data-dir", str(folder)]
    started = time.perf_counter()
    with (folder / "service.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                if httpx.get(f"{url}/health/ready", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if process.poll() is not None:
                raise RuntimeError((folder / "service.log").read_text())
            time.sleep(0.01)
        yield Service(url, process.pid, time.perf_counter() - started)
    finally:
        process.terminate()
        process.wait(timeout=30)


def resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def architectures(count: int) -> list[dict[str, object]]:
    """Of 12 blocks, no two alike."""
    draw, base = np.random.default_rng(0), preset("deit-s").to_dict()
    sizes = {"num_heads": (1, 12), "qk_dim": (8, 64), "v_dim": (8, 64), "mlp_dim": (16, 3072)}

    def block() -> dict[str, int]:
        return {name: int(draw.integers(low, high, endpoint=True)) for name, (low, high) in sizes.items()}

    wanted = ("image_size", "patch_size", "in_chans", "num_classes", "embed_dim", "class_token")
    same = {name: base[name] for name in wanted}
    return [same | {"blocks": [block() for _ in range(12)]} for _ in range(count)]


def ask(url: str, path: str, body: object) -> dict[str, float]:
    response = httpx.post(url + path, json=body, timeout=60)
    response.raise_for_status()
    document: dict[str, float] = response.json()
    return document


def ask_many(url: str, path: str, bodies: list[dict[str, object]], **how: float) -> dict[str, object]:
    """From a process of its own; see `load`."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"url": url, "requests": [[path or path_of(body), body] for body in bodies]}, file)
        file.flush()
        order = json.dumps({"file": file.name, **how})
        done = subprocess.run(
            [sys.executable, __file__, "--load", order], stdout=subprocess.PIPE, text=True, check=True
        )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def path_of(body: dict[str, object]) -> str:
    return "/v1/latency/estimate" if "architectures" in body else "/v1/architectures/search"


async def load(order: dict[str, object]) -> dict[str, object]:
    """Send requests in turn at a rate (0: as fast as they are answered), for some seconds or a number of them."""
    given = json.loads(Path(str(order["file"])).read_text())
    host = urlsplit(given["url"])
    messages = []
    for path, body in given["requests"]:
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {host.netloc}\r\nContent-Type: application/json\r\n"
        messages.append(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    rate, seconds = float(order.get("rate", 0)), float(order.get("seconds", float("inf")))  # type: ignore[arg-type]
    most = int(order.get("count", rate * seconds if rate else 10**9))  # type: ignore[call-overload]
    ms, errors, number = [], 0, 0
    gc.disable()
    started = time.perf_counter()

    async def connection() -> None:
        nonlocal number, errors
        reader, writer = await asyncio.open_connection(host.hostname, host.port)
        while number < most:
            due = started + number / rate if rate else time.perf_counter()
            message = messages[number % len(messages)]
            number += 1
            if due > started + seconds or time.perf_counter() > started + seconds + 30:
                break
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            writer.write(message)
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
            ms.append(1e3 * (time.perf_counter() - due))
            errors += not head.startswith(b"HTTP/1.1 200")
        writer.close()

    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    return {"ms": ms, "errors": errors, "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    main()
