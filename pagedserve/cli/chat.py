# SPDX-License-Identifier: Apache-2.0
"""`pagedserve chat`: a conversation in the terminal. Ctrl-C stops an answer, never the program."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from typing import Any

from pagedserve.cli import serving
from pagedserve.cli.console import Console
from pagedserve.errors import PagedServeError

HELP = "/reset forgets the conversation, /quit (or Ctrl-D) leaves, Ctrl-C stops an answer"


def run(args: argparse.Namespace) -> int:
    """Talk until /quit or the end of stdin."""
    params = serving.sampling_params(args)
    console = Console()
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            importlib.import_module("readline")  # line editing and history, for input()
    with serving.llm(args, console) as llm:
        console.print(f"{args.model}. {HELP}.")
        Conversation(llm, params, args.system, console).run()
    return 0


class Conversation:
    """Turns of user and assistant, and what is typed between them."""

    def __init__(self, llm: Any, params: Any, system: str | None, console: Console) -> None:
        self._llm = llm
        self._params = params
        self._system = system
        self._console = console
        self._turns: list[str] = []

    def run(self) -> None:
        """Read, answer, and so on; every turn sends the whole conversation, whose pages are in the prefix cache."""
        while True:
            try:
                line = input("\n> ").strip()
            except EOFError:
                self._console.print()
                return
            except KeyboardInterrupt:
                self._console.print(f"\n{HELP}")
                continue
            if line == "/quit":
                return
            if line == "/reset":
                self._turns.clear()
                self._console.print("forgotten")
            elif line.startswith("/"):
                self._console.print(HELP)
            elif line:
                self._answer(line)

    def _answer(self, question: str) -> None:
        """Stream one answer; an answer that was stopped stays in the conversation as far as it came."""
        words: list[str] = []
        try:
            messages = serving.messages(self._system, *self._turns, question)
            with contextlib.closing(self._llm.stream(messages, self._params)) as deltas:
                for delta in deltas:
                    words.append(delta.text)
                    self._console.write(delta.text)
            self._console.write("\n")
        except KeyboardInterrupt:
            self._console.write(" [stopped]\n")
        except PagedServeError as error:
            self._console.print(f"{error}. /reset forgets the conversation.")
            return
        self._turns += [question, "".join(words)]
