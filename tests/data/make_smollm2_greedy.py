# SPDX-License-Identifier: Apache-2.0
"""Makes smollm2_greedy.json: what transformers answers in float32, greedily, and how sure it was of each token.

    python tests/data/make_smollm2_greedy.py

Needs transformers and the package that ships the model. A few minutes on two cores.
"""

import json
from pathlib import Path

import torch
import transformers

from pagedserve.cli.prompts import PROMPTS
from pagedserve.models import find_model, load_model

NUM_PROMPTS = 20
NUM_TOKENS = 64


@torch.inference_mode()
def greedy(model: torch.nn.Module, prompt: list[int]) -> dict[str, list]:
    """The tokens, each step's runner-up, and by how much its logit was behind."""
    tokens, runners_up, margins = [], [], []
    cache, given = None, torch.tensor([prompt])
    for _ in range(NUM_TOKENS):
        output = model(given, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        values, ids = output.logits[0, -1].topk(2)
        tokens.append(int(ids[0]))
        runners_up.append(int(ids[1]))
        margins.append(round(float(values[0] - values[1]), 6))
        given = ids[None, :1]
    return {"tokens": tokens, "runners_up": runners_up, "margins": margins}


def main() -> None:
    path = find_model("smollm2-135m-instruct")
    # The file's tokenizer is read by pagedserve: transformers converts this one wrongly.
    tokenizer = load_model(path).tokenizer
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    model.eval()
    torch.set_num_threads(1)
    cases = []
    for text in PROMPTS[:: len(PROMPTS) // NUM_PROMPTS][:NUM_PROMPTS]:
        prompt = tokenizer.encode_chat([{"role": "user", "content": text}])
        cases.append({"text": text, "prompt": prompt} | greedy(model, prompt))
        print(f"{len(cases)} of {NUM_PROMPTS}: {tokenizer.decode(cases[-1]['tokens'])!r}")
    made_with = f"transformers {transformers.__version__}, torch {torch.__version__}, float32, eager attention"
    lines = ",\n".join(json.dumps(case, separators=(",", ":"), ensure_ascii=False) for case in cases)
    target = Path(__file__).with_name("smollm2_greedy.json")
    target.write_text(f'{{"made_with": {json.dumps(made_with)}, "cases": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
