"""Reading tokenized samples back out of their archives, many at a time, by the byte ranges of an index.

The trainer has a reader of its own that is made for single samples in random order; here whole stretches of a shard are
wanted at once (counting n-grams, decoding for the report), which a few large reads bring.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenmill.errors import ManifestError
from tokenmill.generate.evaluate import Sample
from tokenmill.manifests.storage import Store
from tokenmill.pipelines.reading import Place, read_places
from tokenmill.tokenize.segments import segments_from_json


def read_stored(store: Store, archive: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[Sample]:
    """Yield the samples of some index rows of one archive, in the order of the rows."""
    places = [Place(archive, row[f"{m}_offset"], row[f"{m}_length"]) for row in rows for m in ("codes", "text")]
    data = read_places(store, places)
    for row in rows:
        codes, text_ids = (_array(next(data), archive, row["key"]) for _ in range(2))
        yield Sample(segments_from_json(json.loads(row["segments"])), text_ids, codes)


def _array(data: bytes, archive: str, key: str) -> NDArray[np.integer[Any]]:
    try:
        array: NDArray[np.integer[Any]] = np.load(BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        message = f'{archive}: sample {key} is not an array ({error}); run "tokenmill verify --deep"'
        raise ManifestError(message) from error
    return array
