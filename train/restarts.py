"""Starting the ranks anew after one of them died.

A rank lost to memory, a driver or its machine is no fault of the run, which goes on from its newest checkpoint. What a
new start would meet again is not tried: a wrong recipe, a loss that does not recover. A checkpoint since the last start
is progress and gives back all restarts, so a run of weeks is not ended by its tenth fault.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from tokenmill.train.end_signals import listening
from tokenmill.train.ranks import DeadRankError, OnRow, RankGroup, run_ranks

log = logging.getLogger(__name__)

_LONGEST_WAIT_S = 60.0


def run_ranks_again(
    group: RankGroup, on_row: OnRow | None, progress: Callable[[], int], *, restarts: int, wait_s: float
) -> dict[str, Any] | None:
    """Run ranks to their end, starting them anew up to `restarts` times in a row without progress.

    `progress` counts up with every checkpoint. Between starts `wait_s` seconds pass, twice as many each time. Returns
    None if a signal asked to end while there were no ranks to save. Raises as `run_ranks`.
    """
    with listening() as request:
        left, reached, pause_s = restarts, progress(), wait_s
        while True:
            try:
                return run_ranks(group, on_row, request)
            except DeadRankError as error:
                if (now := progress()) > reached:
                    left, reached, pause_s = restarts, now, wait_s
                if not left or request.asked.is_set():
                    raise
                left -= 1
                log.warning("%s; starting anew in %g s, %d more times without progress", error, pause_s, left)
            if request.asked.wait(pause_s):
                return None
            pause_s = min(2 * pause_s, _LONGEST_WAIT_S)
