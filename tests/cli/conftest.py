# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_fakes import FakeAsyncEngine, FakeLLM

from pagedserve.cli import serving

HERE = Path(__file__).parent


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[FakeLLM]:
    """Puts fakes in the engine's place; holds those that were made."""
    fakes: list[FakeLLM] = []

    def maker(kind: type[FakeLLM]) -> Callable[..., FakeLLM]:
        def make(*args: object, **kwargs: object) -> FakeLLM:
            fakes.append(kind(*args, **kwargs))
            return fakes[-1]

        return make

    monkeypatch.setattr(serving, "open_llm", maker(FakeLLM))
    monkeypatch.setattr(serving, "open_async_engine", maker(FakeAsyncEngine))
    return fakes


@pytest.fixture
def fake_program() -> list[str]:
    """A command that is `pagedserve` with fakes in the engine's place, for tests of signals and pipes."""
    program = (
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "from pagedserve.cli import main, serving\n"
        "from cli_fakes import FakeAsyncEngine, FakeLLM\n"
        "serving.open_llm, serving.open_async_engine = FakeLLM, FakeAsyncEngine\n"
        "FakeAsyncEngine.step_s = 0.02\n"
        "raise SystemExit(main())\n"
    )
    return [sys.executable, "-c", program]
