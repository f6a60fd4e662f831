"""Paths in buckets, `gs://` and `s3://`: refused by name, opened, and staged on a disk."""
