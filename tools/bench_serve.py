"""A server under load: many photos at once, none lost, at what latency and in how much memory.

    python tools/bench_serve.py --model=runs/demo --uploads=200 [--json=OUT]

Starts a server of its own on this machine, sends it all uploads at the same moment, first to be
looked through and then to be searched with, each by a connection of its own, and reads the server's
memory from the system.
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
_INDEX = flags.DEFINE_string("index", None, "What build_index.py wrote; MODEL/index by default.")
_UPLOADS = flags.DEFINE_integer("uploads", 200, "At once.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Times that all are sent.", lower_bound=1)
_SIDE = flags.DEFINE_integer("side", 1600, "Pixels of a photo's longer side.", lower_bound=16)
_JSON = flags.DEFINE_string("json", None, "Write the figures here, too.")


def main(argv: list[str]) -> None:
    """Prints, and writes, what each kind of request took."""
    del argv
    command = [sys.executable, "-m", "capret_jax.serve.app", f"--model={_MODEL.value}"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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
            results = asyncio.run(_load(address, server.pid))
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


async def _load(address: str, server: int) -> dict:
    photos, results = [_photo(seed) for seed in range(8)], {}
    idle = _memory(server, "VmRSS")
    limits = httpx.Limits(max_connections=_UPLOADS.value)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=300) as client:
        for path in ("/api/detect", "/api/search"):
            seconds, lost = [], 0
            start = time.perf_counter()
            for _ in range(_ROUNDS.value):
                answers = await asyncio.gather(
                    *(_ask(client, path, photos[i % 8]) for i in range(_UPLOADS.value))
                )
                seconds += [taken for taken, _ in answers]
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


async def _ask(client: httpx.AsyncClient, path: str, photo: bytes) -> tuple[float, int]:
    start = time.perf_counter()
    try:
        answer = await client.post(path, files={"photo": photo})
        status = answer.status_code
    except httpx.HTTPError:
        status = 0
    return time.perf_counter() - start, status


def _photo(seed: int) -> bytes:
    """A JPEG with some detail in it, of a phone camera's proportions."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
    buffer = io.BytesIO()
    coarse.resize((_SIDE.value, _SIDE.value * 3 // 4), Image.Resampling.BICUBIC).save(
        buffer, "JPEG", quality=92
    )
    return buffer.getvalue()


def _memory(process: int, name: str) -> int:
    """Of a process, in MB, as Linux counts it."""
    status = pathlib.Path(f"/proc/{process}/status").read_text()
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    return int(found[1]) // 1024 if found else 0


if __name__ == "__main__":
    app.run(main)
