"""Benchmarks a server under load: latency, lost requests and memory for many photos at once.

    python tools/bench_serve.py --model=runs/demo --uploads=200 [--json=OUT]

Starts a server on this machine and sends it all uploads at once, each over its own connection,
first for detection and then for search. The server's memory is read from /proc.
"""

import asyncio
import io
import json
import pathlib
import re
import socket
import subprocess
import sys
import time

import httpx
import numpy as np
from absl import app, flags
from PIL import Image

_MODEL = flags.DEFINE_string("model", None, "Training workdir with an index.", required=True)
_INDEX = flags.DEFINE_string("index", None, "Folder of the index; MODEL/index by default.")
_UPLOADS = flags.DEFINE_integer("uploads", 200, "Uploads at once.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Times that all uploads are sent.", lower_bound=1)
_SIDE = flags.DEFINE_integer("side", 1600, "Pixels of a photo's longer side.", lower_bound=16)
_JSON = flags.DEFINE_string("json", None, "File to write the results to.")


def main(argv: list[str]) -> None:
    """Prints and writes latency, throughput and memory for each kind of request."""
    del argv
    command = [sys.executable, "-m", "capret_jax.serve.app", f"--model={_MODEL.value}"]
    with socket.socket() as free_port:
        free_port.bind(("127.0.0.1", 0))
        port = free_port.getsockname()[1]
    command += [f"--port={port}", *([f"--index={_INDEX.value}"] if _INDEX.value else [])]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            while "http://" not in server.stdout.readline():
                if server.poll() is not None:
                    raise SystemExit("the server did not start")
            address = f"http://127.0.0.1:{port}"
            _wait_for(address, server)
            print(f"started and compiled in {time.perf_counter() - start:.1f} s")
            results = asyncio.run(_measure(address, server.pid))
        finally:
            server.terminate()
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(results, indent=2) + "\n")


def _wait_for(address: str, server: subprocess.Popen) -> None:
    while server.poll() is None:
        try:
            httpx.get(f"{address}/health")
            return
        except httpx.ConnectError:
            time.sleep(0.1)
    raise SystemExit("the server did not start")


async def _measure(address: str, server: int) -> dict:
    photos, results = [_photo(seed) for seed in range(8)], {}
    idle = _memory(server, "VmRSS")
    limits = httpx.Limits(max_connections=_UPLOADS.value)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=300) as client:
        for path in ("/api/detect", "/api/search"):
            seconds, lost = [], 0
            start = time.perf_counter()
            for _ in range(_ROUNDS.value):
                answers = await asyncio.gather(
                    *(_post(client, path, photos[i % 8]) for i in range(_UPLOADS.value))
                )
                seconds += [duration for duration, _ in answers]
                lost += sum(status != 200 for _, status in answers)
            total = time.perf_counter() - start
            results[path] = {
                "requests": len(seconds),
                "lost": lost,
                "per_second": len(seconds) / total,
                **{f"p{p}": float(np.percentile(seconds, p)) for p in (50, 95, 99)},
            }
            print(path, {name: round(value, 3) for name, value in results[path].items()})
    results["memory_mb"] = {"idle": idle, "peak": _memory(server, "VmHWM")}
    print(f"server's memory: {idle} MB idle, {results['memory_mb']['peak']} MB at its peak")
    return results


async def _post(client: httpx.AsyncClient, path: str, photo: bytes) -> tuple[float, int]:
    start = time.perf_counter()
    try:
        answer = await client.post(path, files={"photo": photo})
        status = answer.status_code
    except httpx.HTTPError:
        status = 0
    return time.perf_counter() - start, status


def _photo(seed: int) -> bytes:
    """Encodes a random, smooth 4:3 JPEG."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
    buffer = io.BytesIO()
    coarse.resize((_SIDE.value, _SIDE.value * 3 // 4), Image.Resampling.BICUBIC).save(
        buffer, "JPEG", quality=92
    )
    return buffer.getvalue()


def _memory(process: int, name: str) -> int:
    """Returns a memory figure of a process in MB, such as "VmRSS", from /proc."""
    status = pathlib.Path(f"/proc/{process}/status").read_text()
    match = re.search(rf"{name}:\s+(\d+) kB", status)
    return int(match[1]) // 1024 if match else 0


if __name__ == "__main__":
    app.run(main)
