# SPDX-License-Identifier: Apache-2.0
"""Models of the Llama family from GGUF files and Hugging Face folders, with their tokenizers. No hub is needed."""

from pagedserve.models.config import ModelConfig
from pagedserve.models.llama import Llama
from pagedserve.models.load import LoadedModel, find_model, load_model
from pagedserve.models.tokenizer import Detokenizer, Tokenizer

__all__ = ["Detokenizer", "Llama", "LoadedModel", "ModelConfig", "Tokenizer", "find_model", "load_model"]
