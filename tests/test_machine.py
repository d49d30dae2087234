"""The setting `threads` holds for torch and for NumPy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import numpy, torch
from threadpoolctl import threadpool_info
from runtime.machine import set_threads

set_threads(3)
pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
print(torch.get_num_threads(), set(pools))
"""


def test_threads_are_those_of_torch_and_of_numpys_products(project: Path) -> None:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
    assert done.stdout == "3 {3}\n"
