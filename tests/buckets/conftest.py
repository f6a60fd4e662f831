"""A server of buckets on this machine, and the variables by which the libraries find it."""

from collections.abc import Iterator

import fsspec
import pytest

from tests.buckets import gcs_server


@pytest.fixture
def bucket_environment(tmp_path_factory, monkeypatch) -> Iterator[gcs_server.Store]:
    """Starts a server; bucket "test" is there, and "forbidden" refuses all requests."""
    with gcs_server.serve() as (store, url):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
        monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
        monkeypatch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
        # Otherwise gcsfs asks Google's own servers for the kind of the bucket.
        monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        monkeypatch.setenv("CAPRET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield store


@pytest.fixture
def bucket(bucket_environment) -> gcs_server.Store:
    """A server, where the client's library is installed."""
    pytest.importorskip("gcsfs", reason="the extra [buckets] is not installed")
    return bucket_environment
