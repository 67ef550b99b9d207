"""Multipart uploads that were begun on S3 and never completed: they cost money and no listing shows them.

obstore can neither list nor abort those of another process, so botocore does, where it is installed (the extra `aws`).
Google's and Azure's go away by the bucket's lifecycle rule or after a week by themselves (docs/storage.md).
"""

from __future__ import annotations

import logging
from typing import Any

from tokenmill.manifests.storage_entries import count
from tokenmill.manifests.storage_options import S3_CREDENTIALS, StorageOptions

log = logging.getLogger(__name__)


def list_uploads(bucket: str, prefix: str, options: StorageOptions) -> list[tuple[str, str, float]]:
    """Return (object, upload, seconds since 1970) of every upload below a prefix; empty for other stores than S3."""
    client = _client(bucket, options)
    if client is None:
        return []
    found = []
    below = f"{prefix}/" if prefix else ""
    for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=_name(bucket), Prefix=below):
        count()
        found += [(one["Key"], one["UploadId"], one["Initiated"].timestamp()) for one in page.get("Uploads", ())]
    return found


def abort_upload(bucket: str, path: str, upload: str, options: StorageOptions) -> None:
    """Abort one upload; one that is gone already is no error."""
    client = _client(bucket, options)
    if client is not None:
        count()
        try:
            client.abort_multipart_upload(Bucket=_name(bucket), Key=path, UploadId=upload)
        except client.exceptions.NoSuchUpload:
            log.debug("an upload was gone already")


def _name(bucket: str) -> str:
    return bucket.partition("://")[2]


def _client(bucket: str, options: StorageOptions) -> Any:
    """Return botocore's client for a bucket, or None where it is not S3 or botocore is not installed."""
    if not bucket.startswith("s3"):
        return None
    try:
        import botocore.session
        from botocore import UNSIGNED
        from botocore.config import Config
    except ImportError:
        log.warning('%s: aborted uploads are not looked for; run "pip install tokenmill[aws]"', bucket)
        return None
    credentials = {S3_CREDENTIALS.get(key, key): value for key, value in options.library.items()}
    signature = {"signature_version": UNSIGNED} if options.anonymous else {}
    return botocore.session.Session(profile=options.profile).create_client(
        "s3",
        endpoint_url=options.endpoint,
        region_name=options.region or "us-east-1" if options.endpoint else options.region,
        aws_access_key_id=credentials.get("access_key_id"),
        aws_secret_access_key=credentials.get("secret_access_key"),
        aws_session_token=credentials.get("session_token"),
        config=Config(
            connect_timeout=options.timeout_s, read_timeout=options.timeout_s, retries={"max_attempts": 1}, **signature
        ),
    )
