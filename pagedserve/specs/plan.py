# SPDX-License-Identifier: Apache-2.0
"""The split plan of a CUDA decode."""

from collections.abc import Iterator

from pagedserve.specs.plan_layout import PlanLayout, workspace_bytes
from pagedserve.specs.spec import Case, OpSpec, ScalarSpec, TensorSpec


def _case(name: str, lens: tuple[int, ...], num_blocks: int, *, room: bool = True, **sizes: int) -> Case:
    heads = {"num_q_heads": 8, "num_kv_heads": 2, "head_dim": 64, "q_len": 1, **sizes}
    window = heads.pop("window", 0)
    num_bytes = (
        workspace_bytes(len(lens), **heads, max_kv_tokens=sum(max(length, 0) for length in lens))
        if room
        else PlanLayout.of(len(lens), **heads).partials
    )
    options = {**heads, "window": window, "num_blocks": num_blocks}
    return Case(f"plan-{name}", {"num_seqs": len(lens), "workspace_bytes": num_bytes}, options=options, lens=lens)


def plan_cases() -> Iterator[Case]:
    mixed = (1, 0, 17, 256, 300, -1, 5000, 513)
    yield _case("one", (1,), 1)
    yield _case("none", (), 3)
    yield _case("mixed", mixed, 7)
    yield _case("no-room", mixed, 7, room=False)
    yield _case("window", mixed, 5, window=700, q_len=3)
    yield _case("many-rows", (700, 9, 1025), 300, num_q_heads=71, num_kv_heads=1, q_len=16, head_dim=136)
    yield _case("long", (1 << 20, 40), 132, num_q_heads=4, num_kv_heads=1)
    yield _case("many", tuple(range(0, 3000, 10)), 264)
    yield _case("any-blocks", mixed, 0)


PLAN_DECODE = OpSpec(
    name="plan_decode",
    formula="workspace = the splits of every sequence, cut into num_blocks even windows",
    tensors=(
        TensorSpec("kv_lens", "num_seqs", ("int32",)),
        TensorSpec("workspace", "workspace_bytes", ("uint8",), mutated=True, layout="dense"),
    ),
    scalars=(
        ScalarSpec("num_q_heads", "int", 32),
        ScalarSpec("num_kv_heads", "int", 8),
        ScalarSpec("head_dim", "int", 128),
        ScalarSpec("q_len", "int", 1),
        ScalarSpec("window", "int", 0),
        ScalarSpec("num_blocks", "int", 0),
    ),
    reference="plan.plan_decode",
    flops=lambda n: 0,
    bytes=lambda n: 4 * n["num_seqs"],
    cases=plan_cases,
    dispatch=("kv_lens",),
)

SPECS = (PLAN_DECODE,)
