"""A vision-language model behind a server of chat completions: the `transformers` one of tests/tiny_vlm.py.

    with VlmServer(write_tiny_vlm(folder)) as server:
        ...                                           # as ChatServer: url, received(), kill(), restart()

Pictures of 64 pixels a side are answered in batches on one core.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from tests.chat_server import ChatServer, serve, taken_apart
from tests.served import ROOT

_MAX_TOKENS = 16


class VlmServer(ChatServer):
    """The server, while the block runs; takes the model's folder and `Settings` as keywords.

    It is a fork of a process that has the model already (loading costs 10 s of CPU), and as mortal as any other.
    """

    def __init__(self, model: Path, **settings: Any) -> None:
        super().__init__(answer_with="tests.vlm_server:captions", **settings)
        self._model = model

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.vlm_server", str(self._model)]
        self._loaded = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._loaded.communicate()

    def restart(self, **settings: Any) -> None:
        vars(self.settings).update(settings)
        assert self._loaded.stdin is not None
        self._loaded.stdin.write(json.dumps(self.arguments()) + "\n")
        self._loaded.stdin.flush()
        self._pid, url = int(self._line()), self._line()
        self.port = self.settings.port = int(urlsplit(url).port or 0)

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        assert self._line() == f"-{signal.SIGKILL:d}"

    def _line(self) -> str:
        assert self._loaded.stdout is not None
        return self._loaded.stdout.readline().strip()


def _fork_servers(model: str) -> None:
    """Fork a server a line of arguments; tell its process, then (as the server does) its URL, then how it ended."""
    _load(model)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            print(os.getpid(), flush=True)
            serve(json.loads(line))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def captions(bodies: list[dict[str, Any]]) -> list[str]:
    """Answer requests together, each about its picture."""
    import torch

    model, processor = _loaded
    asked = [taken_apart(body) for body in bodies]
    chats = [
        [{"role": "user", "content": [*({"type": "image"} for _ in urls), {"type": "text", "text": prompt}]}]
        for _, prompt, urls in asked
    ]
    texts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    pictures = [[_picture(url) for url in urls] for _, _, urls in asked]
    inputs = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
    most = max(body.get("max_tokens") or _MAX_TOKENS for body in bodies)
    with torch.inference_mode():
        ids = model.generate(**inputs, do_sample=False, min_new_tokens=2, max_new_tokens=most)
    found: list[str] = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in found]


_loaded: list[Any] = []  # the model and its processor


def _load(folder: str) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    torch.set_num_threads(1)  # more would not survive the fork
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    _loaded.extend((AutoModelForImageTextToText.from_pretrained(folder).eval(), processor))


def _picture(url: str) -> Any:
    from PIL import Image

    head, _, data = url.partition(",")
    assert head.startswith("data:image/") and head.endswith(";base64"), head
    return Image.open(BytesIO(base64.b64decode(data, validate=True))).convert("RGB")


if __name__ == "__main__":
    from tests import vlm_server  # whose `captions` the server looks up by name

    vlm_server._fork_servers(sys.argv[1])
