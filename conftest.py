"""
What CI=true changes: a test that would be skipped because something is missing fails.

A test that passed only when it was run again is shown with what it failed with at first.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

    from _pytest.reports import CollectReport, TestReport
    from _pytest.terminal import TerminalReporter

pytest_plugins = ("engines.fixtures",)


def _refuse_missing(report: TestReport | CollectReport) -> None:
    if os.environ.get("CI") != "true" or not report.skipped or not isinstance(report.longrepr, tuple):
        return
    reason = report.longrepr[2].removeprefix("Skipped: ")
    if reason.startswith("needs "):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} {reason}; with CI=true that is a failure"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, TestReport, TestReport]:
    report = yield
    _refuse_missing(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, CollectReport, CollectReport]:
    report = yield
    _refuse_missing(report)
    return report


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    ended = (*terminalreporter.stats.get("failed", []), *terminalreporter.stats.get("error", []))
    failed = {report.nodeid for report in ended}
    for report in terminalreporter.stats.get("rerun", []):
        if report.nodeid not in failed:
            terminalreporter.section(f"PASSED ONLY THE SECOND TIME: {report.nodeid}")
            terminalreporter.line(report.longreprtext)
