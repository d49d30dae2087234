"""Where no test may be skipped, a skipped one fails; one that needs a GPU may be skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

def test_passes():
    pass

@pytest.mark.skipif(True, reason="no browser")
def test_needs_a_browser():
    pass

def test_needs_a_package():
    pytest.importorskip("no_such_package")

@pytest.mark.gpu
@pytest.mark.skipif(True, reason="no GPU")
def test_needs_a_gpu():
    pass

@pytest.mark.xfail(strict=True)
def test_of_a_known_fault():
    assert False
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("1", "1 failed, 1 passed, 1 skipped, 1 xfailed, 1 error"),
        ("0", "1 passed, 3 skipped, 1 xfailed"),
    ],
)
def test_a_skipped_test_fails_where_none_may_be_skipped(
    project: Path, tmp_path: Path, setting: str, expected: str
) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    assert expected in run_pytest(project, tmp_path, setting)


@pytest.mark.slow
def test_a_skipped_file_fails_too(project: Path, tmp_path: Path) -> None:
    file = "import pytest\npytest.importorskip('no_such_package')\ndef test_it(): pass\n"
    (tmp_path / "test_some.py").write_text(file)
    assert "1 error" in run_pytest(project, tmp_path, "1")
    assert "1 skipped" in run_pytest(project, tmp_path, "0")


def run_pytest(project: Path, folder: Path, setting: str) -> str:
    """What pytest says of the tests in a folder."""
    environment = os.environ | {"DER_NO_SKIPS": setting, "PYTHONPATH": str(project / "tests")}
    options = ["-q", "-p", "no_skips", "-p", "no:cacheprovider", "-W", "ignore", "--rootdir", "."]
    command = [sys.executable, "-m", "pytest", *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.stdout
