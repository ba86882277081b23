# SPDX-License-Identifier: Apache-2.0
"""The commands on the demo's own model, with few tokens."""

from __future__ import annotations

import json

import pytest

from pagedserve.cli import main
from pagedserve.errors import ModelError
from pagedserve.models.load import find_model

MODEL = "smollm2-135m-instruct"

try:
    find_model(MODEL)
except ModelError as missing:
    pytest.skip(str(missing), allow_module_level=True)


def test_generate_answers_the_same_again(capsys):
    said = []
    for _ in range(2):
        assert main(["generate", "Why is the sky blue?", "--max-tokens", "8", "--temperature", "1", "--seed", "7"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert len(said[0].split()) >= 3


def test_generate_stops_at_a_string(capsys):
    assert main(["generate", "--raw", "one, two, three,", "--max-tokens", "16", "--stop", "six"]) == 0
    out = capsys.readouterr().out
    assert "four" in out
    assert "six" not in out


def test_demo_serves_everybody_the_same_answers(tmp_path, capsys):
    out = tmp_path / "demo.png"
    assert main(["demo", "--users", "2", "--max-tokens", "8", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "Answers identical, token by token, in both modes: 2 of 2" in said
    numbers = json.loads(out.with_suffix(".json").read_text())
    _, at_once, one_by_one = numbers["phases"]
    # One at a time, the second user's prompt begins as the first one's, which is in the prefix cache by then.
    first, second = one_by_one["answers"]
    assert first["prefix_hit_tokens"] == 0
    assert 0 < second["prefix_hit_tokens"] < second["prompt_tokens"]
    assert max(at_once["samples"]["pages_in_use"]) > 0
    assert all(answer["output_tokens"] <= 8 and answer["text"] for answer in at_once["answers"])
    assert out.stat().st_size > 10_000


def test_doctor_finds_what_the_demo_needs(capsys):
    assert main(["doctor"]) == 0
    assert f"{MODEL}: " in capsys.readouterr().out
