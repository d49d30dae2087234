"""A pytest plugin: with DER_NO_SKIPS=1 a skipped test fails, but for one that is marked `gpu`."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

Reports = Generator[None, Any, Any]


def _fail_if_skipped(report: Any, *, may_skip: bool) -> None:
    is_skipped = report.outcome == "skipped" and not hasattr(report, "wasxfail")
    if is_skipped and not may_skip and os.environ.get("DER_NO_SKIPS") == "1":
        _, _, reason = report.longrepr
        report.outcome = "failed"
        report.longrepr = f"DER_NO_SKIPS is set, and this test was skipped. {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Reports:
    report = yield
    _fail_if_skipped(report, may_skip=item.get_closest_marker("gpu") is not None)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Reports:
    """A whole file is skipped while it is collected."""
    report = yield
    _fail_if_skipped(report, may_skip=False)
    return report
