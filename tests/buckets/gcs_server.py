"""A server on this machine that speaks the JSON API of Google Cloud Storage, for tests.

Objects, listings, uploads (simple, multipart, resumable), ranges, preconditions, copies, deletions
and batches of deletions: what gcsfs, TensorStore and google-cloud-storage send.
Source: cloud.google.com/storage/docs/json_api.
"""

import base64
import contextlib
import http.server
import itertools
import json
import re
import sys
import threading
import urllib.parse
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple


class Stored(NamedTuple):
    """An object of a bucket."""

    data: bytes
    generation: int


class Refusal(Exception):
    """An HTTP status that is no success."""


class Store:
    """The objects of all buckets; those of bucket "forbidden" are refused.

    Attributes:
        objects: (bucket, name) -> object.
        requests: the method and path of every request so far.
    """

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Stored] = {}
        self.requests: list[str] = []
        self._generations = itertools.count(1)
        self.lock = threading.Lock()

    def put(self, bucket: str, name: str, data: bytes, query: dict[str, str]) -> dict:
        with self.lock:
            old = self.objects.get((bucket, name))
            wanted = query.get("ifGenerationMatch")
            if wanted not in (None, "") and int(wanted) != (old.generation if old else 0):
                raise Refusal(412)
            self.objects[bucket, name] = Stored(data, next(self._generations))
        return self.meta(bucket, name)

    def get(self, bucket: str, name: str, query: dict[str, str]) -> Stored:
        stored = self.objects.get((bucket, name))
        if stored is None:
            raise Refusal(404)
        if query.get("ifGenerationNotMatch") == str(stored.generation):
            raise Refusal(304)
        if query.get("ifGenerationMatch") not in (None, "", str(stored.generation)):
            raise Refusal(412)
        return stored

    def delete(self, bucket: str, name: str, query: dict[str, str]) -> None:
        with self.lock:
            self.get(bucket, name, query)
            del self.objects[bucket, name]

    def meta(self, bucket: str, name: str) -> dict:
        stored = self.get(bucket, name, {})
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(stored.data)),
            "generation": str(stored.generation),
            "metageneration": "1",
            "etag": str(stored.generation),
            "crc32c": base64.b64encode(zlib.crc32(stored.data).to_bytes(4, "big")).decode(),
            "contentType": "application/octet-stream",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
        }

    def list(self, bucket: str, query: dict[str, str]) -> dict:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        names, folders = [], set()
        for owner, name in sorted(self.objects):
            if owner != bucket or not name.startswith(prefix):
                continue
            if name < query.get("startOffset", "") or name >= query.get("endOffset", "\U0010ffff"):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
            else:
                names.append(name)
        return {"items": [self.meta(bucket, name) for name in names], "prefixes": sorted(folders)}


class _Handler(http.server.BaseHTTPRequestHandler):
    server: "_Server"
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, content: dict, headers: dict | None = None) -> None:
        body = json.dumps(content).encode()
        self._answer(200, body, {"Content-Type": "application/json", **(headers or {})})

    def _serve(self) -> None:
        body = self._read()
        self.server.store.requests.append(f"{self.command} {self.path}")
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        try:
            self._route(url.path, query, body)
        except Refusal as refusal:
            status = refusal.args[0]
            error = {"code": status, "message": f"refused with {status}", "errors": []}
            content = json.dumps({"error": error}).encode()
            self._answer(status, content if status != 304 else b"")

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _serve

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _route(self, path: str, query: dict[str, str], body: bytes) -> None:
        if path == "/batch/storage/v1":
            return self._batch(body)
        path = path.removeprefix("/download")
        match = re.fullmatch(r"(/upload)?/storage/v1/b/([^/]+)(?:/o(?:/(.*))?)?", path)
        if match is None:
            raise Refusal(404)
        bucket = match[2]
        if bucket == "forbidden":
            raise Refusal(403)
        if not bucket.startswith("test"):
            raise Refusal(404)
        if match[1]:
            return self._upload(bucket, query, body)
        if "/o" not in path:
            return self._json({"name": bucket, "location": "here", "storageClass": "STANDARD"})
        if not match[3]:
            return self._json(self.server.store.list(bucket, query))
        return self._object(bucket, match[3], query)

    def _object(self, bucket: str, path: str, query: dict[str, str]) -> None:
        if "/rewriteTo/" in path:
            source, target = path.split("/rewriteTo/")
            _, other, _, name = target.split("/", 3)
            stored = self.server.store.get(bucket, urllib.parse.unquote(source), {})
            name = urllib.parse.unquote(name)
            return self._json(
                {"done": True, "resource": self.server.store.put(other, name, stored.data, query)}
            )
        name = urllib.parse.unquote(path)
        if self.command == "DELETE":
            self.server.store.delete(bucket, name, query)
            return self._answer(204)
        if query.get("alt") != "media":
            return self._json(self.server.store.meta(bucket, name))
        stored = self.server.store.get(bucket, name, query)
        headers = {"x-goog-generation": str(stored.generation), "ETag": str(stored.generation)}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self._answer(200, stored.data, headers)
        first, size = int(wanted[1]), len(stored.data)
        last = min(int(wanted[2] or size - 1), size - 1)
        if first > last:
            raise Refusal(416)
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        return self._answer(206, stored.data[first : last + 1], headers)

    def _upload(self, bucket: str, query: dict[str, str], body: bytes) -> None:
        kind = query.get("uploadType")
        if "upload_id" in query:  # a part of a resumable one
            bucket, name, query, data = self.server.uploads[query["upload_id"]]
            data += body
            if self.headers.get("Content-Range", "").endswith("/*"):
                return self._answer(308, b"", {"Range": f"bytes=0-{len(data) - 1}"})
            return self._json(self.server.store.put(bucket, name, bytes(data), query))
        if kind == "media":
            return self._json(self.server.store.put(bucket, query["name"], body, query))
        if kind == "resumable":
            name, key = json.loads(body)["name"], str(len(self.server.uploads))
            self.server.uploads[key] = (bucket, name, query, bytearray())
            where = f"http://{self.headers['Host']}/upload/storage/v1/b/{bucket}/o"
            return self._json({}, {"Location": f"{where}?upload_id={key}"})
        boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])
        assert boundary is not None
        _, first, second, _ = body.split(b"--" + boundary[1].encode(), 3)
        meta, data = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in (first, second))
        data = data.removesuffix(b"\n").removesuffix(b"\r")
        return self._json(self.server.store.put(bucket, json.loads(meta)["name"], data, query))

    def _batch(self, body: bytes) -> None:
        parts = []
        for bucket, path in re.findall(r"DELETE /storage/v1/b/([^/]+)/o/(\S+) HTTP", body.decode()):
            try:
                self.server.store.delete(bucket, urllib.parse.unquote(path.split("?")[0]), {})
                parts.append("HTTP/1.1 204 No Content\r\n\r\n")
            except Refusal as refusal:
                parts.append(f"HTTP/1.1 {refusal.args[0]} No\r\n\r\n" + '{"error": {}}')
        text = "".join(f"--batch_x\r\nContent-Type: application/http\r\n\r\n{p}\r\n" for p in parts)
        content = {"Content-Type": "multipart/mixed; boundary=batch_x"}
        self._answer(200, f"{text}--batch_x--".encode(), content)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True  # clients keep connections open

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store = Store()
        # Key -> bucket, name, query and the bytes so far of resumable uploads.
        self.uploads: dict[str, tuple[str, str, dict[str, str], bytearray]] = {}

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client may hang up
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serve() -> Iterator[tuple[Store, str]]:
    """Serves an empty store; yields it and its address."""
    server = _Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.store, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
