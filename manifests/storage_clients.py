"""One client of obstore a bucket and process, built from the recipe's options.

Clients hold connections, so all stores of a bucket share one. A process forked from one that has used it may not use
any: the threads that do the work were not copied, and the first request would hang for ever; it is refused instead.
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from obstore.exceptions import UnknownConfigurationKeyError
from obstore.store import ObjectStore, from_url

from tokenmill.errors import RecipeError
from tokenmill.manifests.storage_errors import ForkedProcessError
from tokenmill.manifests.storage_options import S3_CREDENTIALS, StorageOptions, unknown_option
from tokenmill.manifests.storage_retry import Patience

PROTOCOLS = ("s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss", "adl")
_CONNECT_S = 5.0
_OWN_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


@dataclass(slots=True)
class Client:
    """The connections to a bucket: `once` tries a request once, `stubborn` retries those of a many-part operation."""

    once: ObjectStore
    stubborn: ObjectStore
    patience: Patience
    conditional: bool
    process: int


_clients: dict[str, Client] = {}
_lock = threading.Lock()
_owner: int | None = None  # the process whose client has begun to work


def client_of(url: str, options: StorageOptions) -> Client:
    """Return this process's client for the bucket at `scheme://bucket`; raises RecipeError for unknown options."""
    global _owner
    if _owner is not None and _owner != os.getpid():
        raise ForkedProcessError
    name = json.dumps([url, repr(options), options.endpoint, sorted(options.library.items())], default=str)
    with _lock:
        _owner = os.getpid()
        if name not in _clients:
            _clients[name] = _build(url, options)
        return _clients[name]


def _build(url: str, options: StorageOptions) -> Client:
    protocol = url.partition("://")[0]
    config, provider = _config(protocol, options)
    client_options = {
        "allow_http": _is_plain(options, protocol),
        "connect_timeout": timedelta(seconds=min(_CONNECT_S, options.timeout_s)),
        "read_timeout": timedelta(seconds=options.timeout_s),
        "timeout": timedelta(seconds=6 * options.timeout_s),
        **config.pop("client_options", {}),
    }
    backoff = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2}

    def make(retries: int) -> ObjectStore:
        wait = timedelta(seconds=options.retry_timeout_s)
        retry: Any = {"max_retries": retries, "retry_timeout": wait, "backoff": backoff}
        target = url.replace("s3a://", "s3://").replace("gcs://", "gs://")
        settings: Any = {"config": config, "client_options": client_options, "credential_provider": provider}
        return from_url(target, retry_config=retry, **settings)

    try:
        once, stubborn = make(0), make(min(options.retries, 8))
    except UnknownConfigurationKeyError as error:
        text = str(error)
        key = next((key for key in options.library if f"'{key}'" in text), "?")
        raise unknown_option(key, protocol, "obstore") from None
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"storage: obstore cannot use these options for {protocol}:// ({type(error).__name__})"
        ) from None
    patience = Patience(retries=options.retries, total_s=options.retry_timeout_s)
    return Client(once, stubborn, patience, options.conditional_put != "off", os.getpid())


def _is_plain(options: StorageOptions, protocol: str) -> bool:
    """Say whether the endpoint, of the recipe or the environment, is one without TLS: naming it is asking for it."""
    named = options.endpoint
    if named is None and protocol.startswith("s3"):
        named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return (named or "").startswith("http://")


def _config(protocol: str, options: StorageOptions) -> tuple[dict[str, Any], Any]:
    """Return obstore's settings and, for S3 where a profile has to be read, what fetches the credentials."""
    if protocol.startswith("s3"):
        return _s3(options)
    config = dict(options.library)
    if protocol in ("gs", "gcs"):
        if options.endpoint and options.anonymous:  # the client signs writes unless a key file tells it not to
            key = {"gcs_base_url": options.endpoint, "disable_oauth": True}
            config["service_account_key"] = json.dumps(key | dict.fromkeys(_KEY_FIELDS, ""))
        elif options.endpoint:
            config["base_url"] = options.endpoint
    elif options.endpoint:
        config["endpoint"] = options.endpoint
    if options.anonymous and "service_account_key" not in config:
        config["skip_signature"] = True
    return config, None


_KEY_FIELDS = ("client_email", "private_key", "private_key_id")


def _s3(options: StorageOptions) -> tuple[dict[str, Any], Any]:
    config = {S3_CREDENTIALS.get(key, key): value for key, value in options.library.items()}
    if options.endpoint:
        config["endpoint"] = options.endpoint.rstrip("/")
    if options.anonymous:
        return config | {"skip_signature": True} | _region(options, None), None
    provider = None if "access_key_id" in config else _profile(options)
    region = getattr(provider, "config", {}).get("region")
    return config | _region(options, region), provider


def _region(options: StorageOptions, of_profile: str | None) -> dict[str, str]:
    region = options.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or of_profile
    return {"region": region} if region else {}


def _profile(options: StorageOptions) -> Any:
    """Return a provider that reads ~/.aws through boto3, where it is installed and nothing nearer holds a key."""
    asked = options.profile or os.environ.get("AWS_PROFILE")
    if not asked and any(name in os.environ for name in _OWN_CREDENTIALS):
        return None
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        if asked:
            raise RecipeError('storage.profile: reading ~/.aws needs boto3; run "pip install tokenmill[aws]"') from None
        return None
    try:
        return Boto3CredentialProvider(boto3.Session(profile_name=asked))
    except ValueError:
        return None  # nothing found: the client looks for a machine's own role
    except Exception as error:
        raise RecipeError(f"storage.profile: boto3 cannot read it ({type(error).__name__})") from None


def split_url(url: str) -> tuple[str, str]:
    """Split into `scheme://bucket` and the path in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}", parts.path.strip("/")
