"""Every error tokenmill raises on purpose.

    TokenmillError
    ├── RecipeError      the recipe or the arguments are wrong          exit 2
    ├── RunError         a run failed (units failed, budget exhausted)  exit 1
    │   └── DivergedError training does not recover; again is the same  exit 1
    ├── StoppedError     training was asked to stop, and has saved      exit 0
    ├── StorageError     the store did not do what was asked            exit 1
    │   └── OutageError  nothing else it holds can be had either        exit 1
    ├── ManifestError    a record, index or archive is not as described exit 1
    │   └── SchemaError  written by a newer tokenmill than this one     exit 1
    └── SampleError      one bad sample: becomes a row, never ends a run

A message says what, where, and what to do; the CLI prints it as one line.
"""

from __future__ import annotations


class TokenmillError(Exception):
    """The root of the tree; `exit_code` is what the command line ends with."""

    exit_code = 1


class RecipeError(TokenmillError):
    """The recipe or the command line is wrong: names the file, the key path, what was found and what is allowed."""

    exit_code = 2


class RunError(TokenmillError):
    """A run ended without doing all that was asked."""


class DivergedError(RunError):
    """A loss is no number or stays too high: starting the run again would come to the same."""


class StoppedError(TokenmillError):
    """Training was asked to stop and has saved where it is: nothing failed, and nothing that comes after it is done."""

    exit_code = 0


class StorageError(TokenmillError):
    """A store refused, lost or lacks something."""


class OutageError(StorageError):
    """A store cannot be reached, is overloaded or refuses the credentials: no fault of the object asked for."""


class ManifestError(TokenmillError):
    """A record, snapshot, index or archive is missing or does not agree with the others."""


class SchemaError(ManifestError):
    """A file's schema version is newer than this code knows."""


class SampleError(TokenmillError):
    """One sample is bad; `reason` is the counter it lands in, `transient` exempts it from byte identity.

    Args:
        reason: short snake_case word, such as `truncated` or `too_many_pixels`.
        message: one line without addresses or temporary paths (it is stored).
        transient: a time-out, lack of memory or network fault, which a retry may cure.
    """

    def __init__(self, reason: str, message: str, *, transient: bool = False) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message
        self.transient = transient

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"
