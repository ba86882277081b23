# SPDX-License-Identifier: Apache-2.0
"""A GGUF file as a Hugging Face folder in full precision, for libraries that read no GGUF. Made once, then kept."""

from __future__ import annotations

from pathlib import Path

from bench.peers import FOLDER


def folder_of(model: str) -> Path:
    """The folder of a GGUF file's weights in float32, under .peers/models.

    Cost: some 20 s and four bytes a weight, the first time.
    """
    path = Path(model)
    folder = FOLDER / "models" / path.stem
    if (folder / "done").exists():
        return folder
    import torch
    import transformers
    from safetensors.torch import save_file

    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    )
    folder.mkdir(parents=True, exist_ok=True)
    # save_pretrained refuses what came from a quantised file; tied embeddings are saved once.
    tensors = {name: t.contiguous() for name, t in loaded.state_dict().items() if name != "lm_head.weight"}
    if not loaded.config.tie_word_embeddings:
        tensors["lm_head.weight"] = loaded.lm_head.weight.detach().contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for part in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(loaded.config, part):
            delattr(loaded.config, part)
    loaded.config.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).save_pretrained(folder)
    (folder / "done").touch()
    return folder
