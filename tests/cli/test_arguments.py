# SPDX-License-Identifier: Apache-2.0
"""What is refused, how it is said, and with which exit code."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pagedserve
from pagedserve.cli import main
from pagedserve.cli.main import EXIT_ERROR

REFUSED = [
    (["generate", "hi", "--temperature", "-1"], "SamplingParams.temperature is -1.0"),
    (["generate", "hi", "--max-tokens", "0"], "SamplingParams.max_tokens is 0"),
    (["generate", "hi", "--top-p", "0"], "SamplingParams.top_p is 0.0"),
    (["generate", "hi", "--stop", ""], "SamplingParams.stop"),
    (["generate", "   "], "the prompt is empty"),
    (["generate", "hi", "--raw", "--system", "be kind"], "--raw leaves the template out"),
    (["generate", "hi", "--model", "missing"], "there is no model 'missing'"),
    (["chat", "--seed", "-3"], "SamplingParams.seed is -3"),
    (["demo", "--out", "picture.jpg"], "ends in .png"),
    (["explain", "no_such_op"], "the ops are paged_decode,"),
    (["explain", "paged_decode", "--shape", "head_dim"], "KEY=VALUE"),
    (["explain", "paged_decode", "--shape", "colour=3"], "--shape knows"),
    (["explain", "paged_decode", "--shape", "head_dim=-8"], "give a whole number"),
    (["explain", "paged_decode", "--shape", "head_dim=12"], "multiples of 8"),
    (["explain", "paged_decode", "--shape", "q=int8"], "q cannot be int8; it can be float32"),
    (["explain", "paged_decode", "--shape", "window=wide"], "window is 'wide'"),
    (["explain", "paged_decode", "--shape", "kv_len=99999999999999999"], "give smaller sizes"),
    (["explain", "paged_decode", "--shape", f"kv_len={'9' * 5000}"], "give a whole number"),
]


@pytest.mark.parametrize("argv, said", REFUSED, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_errors_are_one_teaching_line_and_exit_2(argv, said, made, capsys):
    assert main(argv) == EXIT_ERROR
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith(f"pagedserve {argv[0]}: ")
    assert said in last
    assert "Traceback" not in captured.err
    assert all(fake.closed for fake in made)


@pytest.mark.parametrize(
    "argv, said",
    [
        ([], "COMMAND"),
        (["sing"], "invalid choice"),
        (["generate"], "PROMPT"),
        (["demo", "--users", "0"], "is below 1"),
        (["demo", "--users", "many"], "invalid"),
        (["generate", "hi", "--top-k", "x"], "invalid int"),
    ],
)
def test_usage_errors_exit_2(argv, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == EXIT_ERROR
    assert said in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"pagedserve {pagedserve.__version__}\n"


def test_help_needs_neither_torch_nor_rich():
    """Words about the program come at once: nothing heavy is imported for them."""
    code = (
        "import sys; from pagedserve.cli import main\n"
        "try: main(['generate', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'rich', 'matplotlib', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--temperature" in done.stdout
