"""Benchmarks a server under load: latency, lost requests and memory for many photos at once.

    python tools/bench_serve.py --model=runs/demo --uploads=200 [--json=OUT]

Starts a server on this machine and sends it all uploads at once, each over its own connection:
for detection, for search, and for search in a box, where nothing is detected. With --in_row it also
sends searches in a box one after the other, and with --bad good ones among uploads that are damaged
or made to take long. The server's memory is read from /proc.
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
from absl import app, flags, logging
from PIL import Image

_MODEL = flags.DEFINE_string("model", None, "Training workdir with an index.", required=True)
_INDEX = flags.DEFINE_string("index", None, "Folder of the index; MODEL/index by default.")
_DETECTOR = flags.DEFINE_string("detector", "auto", "The server's flag of this name.")
_UPLOADS = flags.DEFINE_integer("uploads", 200, "Uploads at once.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Times that all uploads are sent.", lower_bound=1)
_SIDE = flags.DEFINE_integer("side", 1600, "Pixels of a photo's longer side.", lower_bound=16)
_IN_ROW = flags.DEFINE_integer("in_row", 0, "Searches one after the other.", lower_bound=0)
_BAD = flags.DEFINE_integer("bad", 0, "Bad uploads, with a good one beside each.", lower_bound=0)
_JSON = flags.DEFINE_string("json", None, "File to write the results to.")

# Fields of a search in which nothing is detected.
_BOX = {"box": "0.1,0.1,0.9,0.9"}


def main(argv: list[str]) -> None:
    """Prints and writes latency, throughput and memory for each kind of request."""
    del argv
    logging.set_verbosity(logging.WARNING)
    command = [sys.executable, "-m", "capret_jax.serve.app", f"--model={_MODEL.value}"]
    command.append(f"--detector={_DETECTOR.value}")
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
        kinds: dict[str, tuple[str, dict | None]] = {
            "/api/detect": ("/api/detect", None),
            "/api/search": ("/api/search", None),
            "/api/search with a box": ("/api/search", _BOX),
        }
        for name, (path, fields) in kinds.items():
            seconds, lost = [], 0
            start = time.perf_counter()
            for _ in range(_ROUNDS.value):
                answers = await asyncio.gather(
                    *(_post(client, path, photos[i % 8], fields) for i in range(_UPLOADS.value))
                )
                seconds += [duration for duration, _ in answers]
                lost += sum(status != 200 for _, status in answers)
            results[name] = _summary(name, seconds, lost, time.perf_counter() - start)
        if _IN_ROW.value:
            results["in a row"] = await _in_a_row(client, photos, server)
        if _BAD.value:
            results["among bad"] = await _among_bad(client, photos)
    results["memory_mb"] = {"idle": idle, "peak": _memory(server, "VmHWM")}
    print(f"server's memory: {idle} MB idle, {results['memory_mb']['peak']} MB at its peak")
    return results


def _summary(name: str, seconds: list[float], lost: int, total: float) -> dict:
    """Prints and returns the figures of some requests."""
    result = {
        "requests": len(seconds),
        "lost": lost,
        "per_second": len(seconds) / total,
        **{f"p{p}": float(np.percentile(seconds, p)) for p in (50, 95, 99, 100)},
    }
    print(name, {key: round(value, 3) for key, value in result.items()})
    return result


async def _in_a_row(client: httpx.AsyncClient, photos: list[bytes], server: int) -> dict:
    before, start = _memory(server, "VmRSS"), time.perf_counter()
    answers = [await _search(client, photos[i % 8]) for i in range(_IN_ROW.value)]
    seconds, lost = [answer[0] for answer in answers], sum(code != 200 for _, code in answers)
    result = _summary("in a row", seconds, lost, time.perf_counter() - start)
    result["memory_mb"] = [before, _memory(server, "VmRSS")]
    print(f"server's memory: {before} MB before, {result['memory_mb'][1]} MB after")
    return result


async def _among_bad(client: httpx.AsyncClient, photos: list[bytes]) -> dict:
    """Sends pairs of a bad and a good upload, the pairs a tenth of a second apart."""
    bombs = [_scan_bomb(photos[0]), photos[0][: len(photos[0]) // 2], b"no picture", b""]

    async def pair(i: int) -> list[tuple[float, int]]:
        await asyncio.sleep(i / 10)
        return list(
            await asyncio.gather(_search(client, bombs[i % 4]), _search(client, photos[i % 8]))
        )

    start = time.perf_counter()
    pairs = await asyncio.gather(*(pair(i) for i in range(_BAD.value)))
    codes = sorted({bad[1] for bad, _ in pairs})
    seconds, lost = [good[0] for _, good in pairs], sum(good[1] != 200 for _, good in pairs)
    result = _summary("good among bad", seconds, lost, time.perf_counter() - start)
    print(f"bad uploads: answered with {codes}, in at most {max(b[0] for b, _ in pairs):.2f} s")
    return result | {"bad": codes}


def _scan_bomb(jpeg: bytes) -> bytes:
    """Returns a picture whose last progressive scan is repeated 300 times."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * 300 + data[-2:]


async def _search(client: httpx.AsyncClient, photo: bytes) -> tuple[float, int]:
    return await _post(client, "/api/search", photo, _BOX)


async def _post(
    client: httpx.AsyncClient, path: str, photo: bytes, fields: dict | None = None
) -> tuple[float, int]:
    start = time.perf_counter()
    try:
        answer = await client.post(path, files={"photo": photo}, data=fields)
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
