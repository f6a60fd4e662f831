"""A server of buckets on this machine, and the variables by which the libraries find it."""

from collections.abc import Iterator

import fsspec
import gcsfs.core
import pytest

from tests.buckets import gcs_server

# The class that gcsfs registers asks Google's own servers for the kind of a bucket.
for protocol in ("gs", "gcs"):
    fsspec.register_implementation(protocol, gcsfs.core.GCSFileSystem, clobber=True)


@pytest.fixture
def bucket(tmp_path_factory, monkeypatch) -> Iterator[gcs_server.Store]:
    """Starts a server; bucket "test" is there, and "forbidden" refuses all requests."""
    with gcs_server.serve() as (store, url):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
        monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
        monkeypatch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
        monkeypatch.setenv("CAPRET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield store
