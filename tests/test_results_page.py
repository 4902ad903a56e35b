"""docs/results.md says what the committed runs say."""

from benchmarks.suite_report import DOCS, read, tables
from dllm.eval.tasks import SUITE, SUITES


def test_the_page_is_that_of_its_runs():
    page = (DOCS / "results.md").read_text()
    for name, table in tables(read()).items():
        assert f"<!-- {name} -->\n{table}\n<!-- {name} -->" in page, "run make results"


def test_the_runs_are_of_this_suite():
    for run in read().values():
        assert (run.plan.suite, run.plan.tasks) == (SUITE, SUITES["tiny"])
