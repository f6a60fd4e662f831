"""Recognises paths that name a bucket, and refuses them where only a disk will do."""

import os
import pathlib
import re

from capret_jax.errors import InputError

# pathlib makes "gs:/x" of "gs://x"; "transformers:/x" is a path with a prefix of our own.
_URL = re.compile(r"([a-z][a-z0-9+.-]+)(?=://)|(gs|s3|az|abfs|hdfs|hf)(?=:/)", re.IGNORECASE)
_WEB = ("http", "https")


def url_scheme(path: str | os.PathLike) -> str:
    """Returns the scheme of a URL, such as "gs"; empty for a path on a disk."""
    match = _URL.match(os.fspath(path))
    return match[0].lower() if match else ""


def absolute(path: pathlib.Path) -> pathlib.Path:
    """Returns an absolute path; one in a bucket is so already, and epath would put it on a disk."""
    return path if url_scheme(path) else path.absolute()


def check_no_url(name: str, value: object) -> None:
    """Checks that a value, or each text of a list of values, is not a URL in a bucket.

    A library that knows nothing of buckets would make a local folder "gs:" of it.

    Args:
        name: name of the flag or key, for the message.
        value: the value; other types than texts and lists pass, and so do addresses of the web.

    Raises:
        InputError: it is a URL.
    """
    values = value if isinstance(value, (list, tuple)) else [value]
    for text in values:
        if isinstance(text, str) and url_scheme(text) not in ("", *_WEB):
            raise InputError(
                f"{name}={text} is in a bucket, which this cannot read or write: give a folder or "
                "file on a disk, copy it from or to the bucket, or mount the bucket "
                "(see Buckets in docs/scaling.md)."
            )
