"""How a command ends: a user's mistake, a defect of ours, Ctrl-C, SIGTERM. Real processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAD = """
import sys, threading, time
from runtime.command_line import run_command
from runtime.errors import ConfigError
def ready():
    print("ready", flush=True)
"""


def start(code: str, project: Path, *arguments: str) -> subprocess.Popen[str]:
    """A Python process that ignores no signal, whatever this one does."""
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + code, *arguments],
        env=os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def ended(process: subprocess.Popen[str], number: int) -> tuple[int, list[str], float]:
    """Status, lines and seconds of a process that is sent a signal once it is ready."""
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    began = time.perf_counter()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said.splitlines(), time.perf_counter() - began


BLOCKED = {
    "in Python": "def main(arguments):\n    ready()\n    time.sleep(60)\n",
    "in one long computation": (
        "import torch\n"
        "def main(arguments):\n"
        "    a = torch.rand(9000, 9000, dtype=torch.float64)\n"
        "    ready()\n"
        "    a @ a\n"
    ),
    "with a thread that does not end": (
        "def main(arguments):\n"
        "    threading.Thread(target=time.sleep, args=[60]).start()\n"
        "    ready()\n"
        "    time.sleep(60)\n"
    ),
    "in what has to be closed": (
        "def main(arguments):\n"
        "    try:\n"
        "        ready()\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        time.sleep(60)\n"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("code", BLOCKED.values(), ids=BLOCKED)
def test_ctrl_c_ends_within_two_seconds_with_130_and_one_line(project: Path, code: str) -> None:
    process = start(code + "run_command(main)", project)
    status, said, seconds = ended(process, signal.SIGINT)
    assert status == 130
    lines = [line for line in said if line]
    assert len(lines) == 1 and lines[0].startswith("interrupted; what was generated is stored")
    assert seconds < 2.5  # two, and half a second for a busy machine


@pytest.mark.slow
def test_ctrl_c_during_the_imports_is_as_quiet(project: Path) -> None:
    code = "from runtime.signals import watch_signals\nwatch_signals()\nready()\ntime.sleep(60)"
    status, said, seconds = ended(start(code, project), signal.SIGINT)
    assert (status, len(said)) == (130, 1) and seconds < 2.5


def test_a_message_starts_on_a_line_of_its_own_below_a_progress_bar(project: Path) -> None:
    code = """
from tqdm import tqdm
def main(arguments):
    bar = tqdm(total=3)
    bar.update()
    raise ConfigError("not so")
run_command(main)
"""
    process = start(code, project)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.endswith("\nerror: not so\n") and "1/3" in said.splitlines()[-2]


def test_sigterm_ends_any_command_in_one_line(project: Path) -> None:
    process = start(
        "def main(arguments):\n    ready()\n    time.sleep(60)\nrun_command(main)", project
    )
    status, said, _ = ended(process, signal.SIGTERM)
    assert (status, len(said)) == (143, 1) and said[0].startswith("terminated; what was generated")


def test_a_second_sigterm_does_not_wait_for_what_is_finished_first(project: Path) -> None:
    code = """
from runtime.signals import finishing_first
def main(arguments):
    with finishing_first("finishing") as asked:
        ready()
        while not asked.is_set():
            time.sleep(0.01)
        print("asked", flush=True)
        time.sleep(60)
run_command(main)
"""
    process = start(code, project)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 143
    assert said.splitlines()[0] == "finishing" and len(said.splitlines()) == 2


def test_a_defect_is_one_line_and_a_traceback_in_the_file_it_names(project: Path) -> None:
    code = "def main(arguments):\n    return {}['nothing']\nrun_command(main)"
    process = start(code, project, "--an-option")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and len(said.splitlines()) == 1
    match = re.search(r"a defect of DER, not of yours \(KeyError: 'nothing'\).* (/.*\.txt)$", said)
    report = Path(match[1])
    assert "--an-option" in report.read_text()
    assert "KeyError: 'nothing'" in report.read_text().splitlines()[-1]
    report.unlink()


def test_a_file_that_may_not_be_read_is_no_defect(project: Path, tmp_path: Path) -> None:
    code = f"def main(arguments):\n    open({str(tmp_path)!r})\nrun_command(main)"
    process = start(code, project)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (1, f"error: {tmp_path}: Is a directory\n")
