"""The settings of downloads, apart from what downloads: a wrong recipe is refused without an HTTP library."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tokenmill.pipelines.sources.safe_addresses import parse_networks


class DownloadSettings(BaseModel):
    """How a `urls` source fetches; what decides which rows there are is in `identity`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    concurrency: int = Field(default=64, ge=1, description="requests at once, of one worker")
    per_host: int = Field(default=4, ge=1, description="requests at once to one host")
    host_interval_s: float = Field(default=0.1, ge=0, description="between the starts of two requests to one host")
    tries: int = Field(default=3, ge=1)
    backoff_s: float = Field(default=1.0, ge=0, description="before the second try; doubles with each")
    longest_wait_s: float = Field(default=60.0, ge=0, description="that a Retry-After is obeyed; then the row fails")
    connect_timeout_s: float = Field(default=10.0, gt=0)
    read_timeout_s: float = Field(default=20.0, gt=0, description="between two pieces of an answer")
    total_timeout_s: float = Field(default=60.0, gt=0, description="for one request")
    max_bytes: int = Field(default=32 * 2**20, ge=1, description="of a picture")
    bytes_ahead: int = Field(default=256 * 2**20, ge=1, description="in memory, of one worker")
    max_redirects: int = Field(default=5, ge=0)
    contact: str = Field(default="", description="an address or page for the owners of hosts, in the user agent")
    ignore_opt_out: bool = False
    allow_private: bool | tuple[str, ...] = Field(default=False, description="true, or networks such as 10.1.0.0/16")

    allow_ports: tuple[int, ...] = Field(default=(), description="ports of other services that are asked all the same")

    @field_validator("allow_private")
    @classmethod
    def _networks(cls, value: bool | tuple[str, ...]) -> bool | tuple[str, ...]:
        parse_networks(value)
        return value

    @field_validator("contact")
    @classmethod
    def _printable(cls, value: str) -> str:
        if not (value.isascii() and value.isprintable()):
            raise ValueError("is sent in a header: printable ASCII only")
        return value

    @property
    def identity(self) -> dict[str, Any]:
        private = list(self.allow_private) if isinstance(self.allow_private, tuple) else self.allow_private
        return {
            "max_bytes": self.max_bytes,
            "max_redirects": self.max_redirects,
            "ignore_opt_out": self.ignore_opt_out,
            "allow_private": private,
            **({"allow_ports": sorted(self.allow_ports)} if self.allow_ports else {}),
        }

    @property
    def user_agent(self) -> str:
        contact = f" (+{self.contact})" if self.contact else ""
        return f"tokenmill/{importlib.metadata.version('tokenmill')}{contact}"
