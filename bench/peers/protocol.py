# SPDX-License-Identifier: Apache-2.0
"""How the bench talks to an engine in a process of its own: one JSON object a line, a question and its answer.

    {"do": "load", "model": PATH, "threads": N, "variant": NAME}   -> {"ok": true, "version", "precision", "load_s"}
    {"do": "run", "requests": [...]}                               -> {"ok": true, "records": [...]}
    {"do": "logits", "token_ids": [...], "file": PATH}             -> {"ok": true, "exposed": true or false}
    {"do": "quit"}

A failure answers {"ok": false, "error": "..."}. What a library prints goes to stderr. Standard library only.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.workload import Engine, Record, Request, drive

ROOT = Path(__file__).resolve().parent.parent.parent
Load = Callable[[str, int, str], Engine]  # (model, threads, variant) -> Engine
Message = dict[str, Any]


class PeerError(RuntimeError):
    """A peer's process died, did not answer in time, or answered with an error."""


# In the peer's process


def serve(load: Load) -> None:
    """Answers questions on stdin until it ends or is told to quit. An adapter module's main."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not stand between answers
    sys.stdout = sys.stderr  # where it stands at once, too, and not in a buffer
    engine: Engine | None = None
    for line in sys.stdin:
        question = json.loads(line)
        if question["do"] == "quit":
            return
        try:
            if question["do"] == "load":
                begin = time.perf_counter()
                engine = load(question["model"], question["threads"], question["variant"])
                loaded = {"version": engine.version, "precision": engine.precision}
                answer = {"ok": True, **loaded, "load_s": time.perf_counter() - begin}
            elif engine is None:
                raise RuntimeError(f"{question['do']!r} before load")
            else:
                answer = _answer(engine, question)
        except Exception as error:  # the bench goes on with other engines, and shows this
            traceback.print_exc()
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(engine: Engine, question: Message) -> Message:
    if question["do"] == "run":
        records = drive(engine, [Request.from_json(fields) for fields in question["requests"]])
        return {"ok": True, "records": [asdict(record) for record in records]}
    if question["do"] == "logits":
        values = engine.logits(question["token_ids"])
        if values is not None:
            import numpy

            numpy.save(question["file"], values)
        return {"ok": True, "exposed": values is not None}
    raise ValueError(f"unknown question {question['do']!r}")


# In the bench's process


class PeerProcess:
    """One engine in its own process. It is stopped whenever it is not asked, so that it takes no time from others."""

    def __init__(self, python: str, module: str, threads: int) -> None:
        self.module = module
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  lives as long as the process
        environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PAGEDSERVE_THREADS"), str(threads))
        self._process = subprocess.Popen(
            [python, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environment},
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")  # the end

    def ask(self, question: Message, timeout_s: float) -> Message:
        """The answer to one question.

        Raises:
            PeerError: the process died, took longer than timeout_s (it is killed), or answered with an error.
        """
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            self._process.kill()
            raise PeerError(f"{self.module} did not answer {question['do']!r} within {timeout_s:.0f} s") from None
        except BrokenPipeError:
            line = ""
        if not line:
            self._lines.put("")  # the end is the end for the next question too
            raise PeerError(f"{self.module} ended while asked to {question['do']!r}: {self.last_words()}")
        self._signal(signal.SIGSTOP)
        answer: Message = json.loads(line)
        if not answer["ok"]:
            raise PeerError(f"{self.module} cannot {question['do']!r}: {answer['error']}")
        return answer

    def load(self, model: str, threads: int, variant: str, timeout_s: float = 600.0) -> Message:
        return self.ask({"do": "load", "model": model, "threads": threads, "variant": variant}, timeout_s)

    def run(self, requests: Sequence[Request], timeout_s: float = 1800.0) -> list[Record]:
        answer = self.ask({"do": "run", "requests": [request.as_json() for request in requests]}, timeout_s)
        return [Record(**fields) for fields in answer["records"]]

    def logits(self, token_ids: Sequence[int], timeout_s: float = 600.0) -> Any:
        """[len(token_ids), vocab_size] float32, or None where the engine does not expose them."""
        import numpy

        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "logits.npy")
            question = {"do": "logits", "token_ids": list(token_ids), "file": file}
            return numpy.load(file) if self.ask(question, timeout_s)["exposed"] else None

    def last_words(self) -> str:
        """The end of what the process wrote to stderr."""
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return " | ".join(lines[-5:]) or "it said nothing"

    def close(self) -> None:
        """Ends the process; gently first."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write('{"do": "quit"}\n')
            self._process.stdin.close()
            self._process.wait(timeout=10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)
