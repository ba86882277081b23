# SPDX-License-Identifier: Apache-2.0
"""Recorded traces in each format, from tiny files."""

from __future__ import annotations

import json

import pytest

from pagedserve.errors import InvalidInput
from pagedserve.simulate.traces import BlockPrompt, mooncake_line, read_trace
from pagedserve.simulate.workload import Slo

MOONCAKE = """\
{"timestamp": 1000, "input_length": 700, "output_length": 5, "hash_ids": [0, 7]}
{"timestamp": 1500, "input_length": 1024, "output_length": 3, "hash_ids": [0, 9]}

{"timestamp": 1400, "input_length": 3, "output_length": 1, "hash_ids": [4]}
"""
BURSTGPT = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,API log
"""
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 23:59:59.6805900,374,44
2023-11-17 00:00:01.1806000,396,109
"""
AZURE_2024 = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:00.509930+00:00,2399,6
"""


def read(tmp_path, text, *args, **options):
    path = tmp_path / "trace"
    path.write_text(text)
    return list(read_trace(path, *args, **options))


def shapes(requests):
    return [(round(r.arrival_s, 6), len(r.prompt), r.output_tokens) for r in requests]


@pytest.mark.parametrize(
    "text, format, wanted",
    [
        (MOONCAKE, "mooncake", [(0.0, 700, 5), (0.5, 1024, 3), (0.5, 3, 1)]),
        (BURSTGPT, "burstgpt", [(0.0, 472, 18), (113.0, 417, 276)]),
        (AZURE, "azure", [(0.0, 374, 44), (1.50001, 396, 109)]),
        (AZURE_2024, "azure", [(0.0, 2162, 5), (0.5, 2399, 6)]),
        ("\ufeff" + BURSTGPT, "burstgpt", [(0.0, 472, 18), (113.0, 417, 276)]),
    ],
)
def test_each_format(tmp_path, text, format, wanted):
    assert shapes(read(tmp_path, text)) == shapes(read(tmp_path, text, format)) == wanted


def test_speed_limit_and_slo(tmp_path):
    slo = Slo(1.0, 0.05)
    requests = read(tmp_path, AZURE, speed=2.0, slo=slo)
    assert requests[1].arrival_s == pytest.approx(0.750005)
    assert {request.slo for request in requests} == {slo}
    assert len(read(tmp_path, AZURE, limit=1)) == 1


def test_mooncake_prompts_share_what_their_blocks_share(tmp_path):
    one, other, short = (list(request.prompt) for request in read(tmp_path, MOONCAKE))
    assert [len(one), len(other), len(short)] == [700, 1024, 3]
    common = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    assert common == 512
    assert short[0] not in one + other


def test_a_block_prompt_is_a_sequence():
    prompt = BlockPrompt([3, 8], 600)
    tokens = list(prompt)
    assert tokens == [prompt[i] for i in range(len(prompt))]
    assert list(prompt[500:520]) == tokens[500:520]
    assert prompt[-1] == tokens[-1]
    with pytest.raises(IndexError):
        prompt[600]


def test_azure_prompts_share_nothing(tmp_path):
    one, other = read(tmp_path, AZURE)
    assert not set(one.prompt) & set(other.prompt)


def test_a_written_line_is_read_back(tmp_path):
    line = mooncake_line(1.25, 600, 7, [1, 2])
    assert json.loads(line)["timestamp"] == 1250
    assert shapes(read(tmp_path, mooncake_line(0.0, 5, 1, [0]) + "\n" + line)) == [(0.0, 5, 1), (1.25, 600, 7)]


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "which is none of"),
        ("a,b\n1,2\n", "which is none of"),
        (MOONCAKE + "{}\n", "line 5"),
        ('{"timestamp": 0, "input_length": 513, "output_length": 1, "hash_ids": [1]}\n', "line 1"),
        (BURSTGPT + "x,y,z,1,2,3\n", "line 5"),
        (AZURE + "2023-11-17\n", "line 4"),
        (AZURE + "yesterday,1,2\n", "line 4"),
    ],
)
def test_a_bad_row_is_named(tmp_path, text, says):
    with pytest.raises(InvalidInput, match=says):
        read(tmp_path, text)


def test_a_missing_file_and_an_unknown_format(tmp_path):
    with pytest.raises(InvalidInput, match="cannot be read"):
        list(read_trace(tmp_path / "none"))
    with pytest.raises(InvalidInput, match="supported: auto, mooncake"):
        read(tmp_path, AZURE, "excel")
    with pytest.raises(InvalidInput, match="speed"):
        read(tmp_path, AZURE, speed=0.0)
