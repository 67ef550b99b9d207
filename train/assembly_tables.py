"""Tables of whole numbers that the loader's Python and its compiled code share, with columns by name.

Plain arrays, since numba takes longer to look at an array of records than to assemble a pack.

N documents, P parts, S packs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Parts = NDArray[np.int32]

FILE, LAYOUT, START, LENGTH = range(4)  # columns of documents, (N, 14)
CODES, TEXT_IDS = 4, 9  # where a member's own five columns begin: the ones below
AT, COUNT, WIDTH, FIRST, LAST = range(5)  # place in the file; items; bytes of one; those needed, [first, last)
DOCUMENT_COLUMNS = 14
EXTENTS = 4  # most stretches of a file that a document is read in; (N, 8): start, bytes, start, bytes …
KIND, LOSS, SIZE, BEGIN, ROWS, COLUMNS = range(6)  # columns of parts, (P, 6)
PACK, PLACE, BASE, BORDER, PACK_SIZE, ERROR = range(6)  # columns of slots, (S, 6); PACK is -1 for a filler
SLOT_COLUMNS = 6
PAD, EOL, EOF, TEXT_BASE, VISION_BASE, TEXT_SIZE, CODEBOOK_SIZE = range(7)  # of the vocabulary's numbers

GOOD, NO_LAYOUT, UNREAD, NO_HEADER, OUT_OF_RANGE = range(5)  # what became of a document
NO_LABEL = -100
HEADER_BYTES = 128  # of an .npy of one to three dimensions, as numpy writes it
KIND_MARKER, KIND_TEXT, KIND_VISION = range(3)  # as in tokenize/layouts.py
