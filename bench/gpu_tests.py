"""GPU checks: the kernels' tests (tests/hostsim) on CUDA. A case is a test with the parameter "cuda"."""

import os
import pathlib

import pytest

from bench.gpu_worker import LOST, LOST_CONTEXT, Report
from tests.hostsim import cuda

ROOT = pathlib.Path(__file__).parents[1]


class Plugin:
    """Leaves out what had its turn, reports each test, and ends the process behind a lost context."""

    def __init__(self, over: set[str], report: Report):
        self.over, self.report = over, report
        self.failed: str | None = None
        self.skipped: str | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        calls = [(item, getattr(item, "callspec", None)) for item in items]
        chosen = [item for item, call in calls if call is not None and call.params.get("sim") == cuda.PARAMETER]
        kept = [item for item in chosen if item.nodeid not in self.over]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.failed = self.skipped = None
        self.report.begin(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = self.failed or str(report.longrepr)
        elif report.skipped:
            self.skipped = str(report.longrepr)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if self.failed is not None:
            last = next((x for x in reversed(self.failed.splitlines()) if x.strip()), "")
            self.report.result(nodeid, "red", {"why": last[:300], "trace": self.failed[-1500:]})
            if LOST.search(self.failed):
                os._exit(LOST_CONTEXT)
        elif self.skipped is not None:
            self.report.result(nodeid, "skipped", {"why": self.skipped[:300]})
        else:
            self.report.result(nodeid, "green", {})


def run(over: set[str], report: Report) -> None:
    """All of them; complete where pytest came to its end, whatever the tests said."""
    args = ["-q", "-p", "no:cacheprovider", "--tb=short", str(ROOT / "tests" / "hostsim")]
    code = pytest.main(args, plugins=[Plugin(over, report)])
    if code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        report.complete()
    else:
        raise SystemExit(f"pytest ended with {code!r}")
