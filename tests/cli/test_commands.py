# SPDX-License-Identifier: Apache-2.0
"""generate, chat and demo as programs: words as they come, what is sent, signals and pipes."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import time

import pytest

from pagedserve.cli import main
from pagedserve.cli.main import EXIT_BROKEN_PIPE, EXIT_ERROR, EXIT_INTERRUPT

SLOW_WORDS = " ".join(["sleep", *(f"word{i}" for i in range(100))])


def test_generate_answers_on_stdout_alone(made, capsys):
    assert main(["generate", "one two three", "--system", "be brief"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "three two one\n"
    assert "loading" in captured.err
    assert made[0].prompts == ["<system> be brief <user> one two three <assistant>"]
    assert made[0].closed


def test_generate_raw_leaves_the_template_out(made, capsys):
    assert main(["generate", "--raw", "one two three", "--max-tokens", "2"]) == 0
    assert made[0].prompts == ["one two three"]
    assert capsys.readouterr().out == "three two\n"


def test_generate_reads_stdin(made, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe\n"))
    assert main(["generate", "-"]) == 0
    assert capsys.readouterr().out == "pipe a from\n"


def test_generate_says_how_long_it_took(made, capsys):
    assert main(["generate", "one two three four five", "--stats"]) == 0
    assert "first token after 250 ms; 5 tokens in 1.25 s, 4 tokens/s" in capsys.readouterr().err


def talk(monkeypatch, *lines: str | type[BaseException]) -> None:
    """Puts lines, or what Ctrl-C and Ctrl-D raise, where the program reads; Ctrl-D comes last."""
    said = iter(lines)

    def read(prompt: str = "") -> str:
        line = next(said, EOFError)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", read)


def test_chat_sends_the_whole_conversation(made, capsys, monkeypatch):
    talk(monkeypatch, "hello you", "", "and now", "/reset", "afresh", "/quit", "never read")
    assert main(["chat", "--system", "s"]) == 0
    assert made[0].prompts == [
        "<system> s <user> hello you <assistant>",
        "<system> s <user> hello you <assistant> you hello <user> and now <assistant>",
        "<system> s <user> afresh <assistant>",
    ]
    assert "you hello\n" in capsys.readouterr().out


def test_chat_ends_with_stdin_and_explains_itself(made, capsys, monkeypatch):
    talk(monkeypatch, "/what", KeyboardInterrupt)
    assert main(["chat"]) == 0
    assert capsys.readouterr().out.count("/reset forgets the conversation") == 3
    assert made[0].closed


def test_chat_goes_on_after_an_error(made, capsys, monkeypatch):
    talk(monkeypatch, "word " * 300, "short")
    assert main(["chat"]) == 0
    assert "this engine holds 200. /reset forgets" in capsys.readouterr().out
    assert made[0].prompts == ["<user> short <assistant>"]


def read_until(process: subprocess.Popen, words: str) -> str:
    """What the process writes, up to some words."""
    text = ""
    while words not in text:
        piece = os.read(process.stdout.fileno(), 4096).decode()
        assert piece, f"ended before {words!r}: {text!r}"
        text += piece
    return text


def start(command: list[str], **more: object) -> subprocess.Popen:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def test_generate_streams_and_ctrl_c_ends_it(fake_program):
    process = start([*fake_program, "generate", SLOW_WORDS])
    seen = read_until(process, "word90")
    assert "word10" not in seen
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == EXIT_INTERRUPT
    assert errors.decode().endswith("stopped\n")
    assert "Traceback" not in errors.decode()


def test_generate_ends_when_nobody_reads(fake_program):
    process = start([*fake_program, "generate", SLOW_WORDS])
    read_until(process, "word90")
    began = time.monotonic()
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert process.wait(timeout=20) == EXIT_BROKEN_PIPE
    assert time.monotonic() - began < 3  # a hundred words take five seconds
    assert "Traceback" not in errors
    assert "Exception" not in errors


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("argv", [["generate", "one two"], ["explain", "soft_cap"]], ids=lambda argv: argv[0])
def test_a_full_disk_is_one_line(made, capsys, monkeypatch, argv):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert main(argv) == EXIT_ERROR
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"pagedserve {argv[0]}: cannot go on: [Errno 28]")


@pytest.mark.parametrize("argv, code", [(["generate", "-"], EXIT_ERROR), (["generate", "one two"], 0), (["chat"], 0)])
def test_streams_that_were_closed_are_nothing_to_read_and_nowhere_to_write(made, monkeypatch, argv, code):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(f"sys.{name}", None)
    assert main(argv) == code


def test_chat_ctrl_c_stops_the_answer_and_not_the_program(fake_program):
    process = start([*fake_program, "chat"], stdin=subprocess.PIPE)
    process.stdin.write(f"{SLOW_WORDS}\n".encode())
    process.stdin.flush()
    read_until(process, "word90")
    process.send_signal(signal.SIGINT)
    read_until(process, "[stopped]")
    output, errors = process.communicate(b"still there\n/quit\n", timeout=20)
    assert "there still" in output.decode()
    assert process.returncode == 0
    assert "Traceback" not in errors.decode()


def test_ctrl_c_ends_the_demo(fake_program, tmp_path):
    process = start([*fake_program, "demo", "--out", str(tmp_path / "demo.png")])
    read_until(process, "one at a time")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == EXIT_INTERRUPT
    assert errors.decode().endswith("stopped\n")
    assert "Traceback" not in errors.decode()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argv", [["doctor"], ["explain", "rms_norm"]])
def test_a_pipe_that_nobody_reads(fake_program, argv):
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run([*fake_program, *argv], stdout=write_end, stderr=subprocess.PIPE, timeout=60)
    os.close(write_end)
    assert done.returncode == EXIT_BROKEN_PIPE
    assert done.stderr == b""
