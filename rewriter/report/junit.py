"""A validation as JUnit XML, which continuous integration shows test by test."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

from rewriter.report.text import figure
from rewriter.verify.per_site import PerSite, SiteRecord
from rewriter.verify.validation import CaseReport, OutputReport, ValidationReport

__all__ = ["junit"]

# what XML 1.0 has no way to write, not even escaped (its production 2, Char)
_UNWRITABLE = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(report: ValidationReport) -> str:
    """Return the report as one ``testsuite``: a test per budget, per input and per site that is judged.

    A budget that is missed, an input that fails and a site to blame are failures; an input that the original
    itself cannot run is skipped. A verdict that no test carries is a test of its own, so that a suite without
    failures is a report that is ok. Attributes are those that the schemas of Jenkins and of pytest share.
    """
    suite = ElementTree.Element("testsuite", name=_plain(f"{report.original} against {report.rewritten}"))
    cases = list(_tests(report))
    if not report.ok and not any(test.find("failure") is not None for test in cases):
        cases.append(_test("verdict", report.rewritten, report.verdict))
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(sum(test.find("failure") is not None for test in cases)))
    suite.set("errors", "0")
    suite.set("skipped", str(sum(test.find("skipped") is not None for test in cases)))
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (("verdict", report.verdict), ("judged", report.judged), ("seed", str(report.seed))):
        ElementTree.SubElement(properties, "property", name=name, value=_plain(value))
    for task in report.tasks:
        value = f"{task.original:g} to {task.rewritten:g}"
        ElementTree.SubElement(properties, "property", name=_plain(f"task.{task.name}"), value=value)
    suite.extend(cases)
    ElementTree.indent(suite)
    text = ElementTree.tostring(suite, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _tests(report: ValidationReport) -> Iterator[ElementTree.Element]:
    for outcome in report.budget:
        yield _test("budget", str(outcome.budget), None if outcome.ok else str(outcome))
    for case in report.cases:
        yield _of_case(case)
    recorded = report.per_site if isinstance(report.per_site, PerSite) else None
    for site in recorded.sites if recorded is not None else ():
        if site.ok is not None:
            yield _test("site", site.site, None if site.ok else _of_site(site))


def _of_case(case: CaseReport) -> ElementTree.Element:
    if case.ok and case.error is not None:
        test = _test(case.group, case.name, None)
        ElementTree.SubElement(test, "skipped", message=_plain(case.error))
        return test
    wrong = case.error or "; ".join(_of_output(o) for o in case.outputs if not o.ok)
    return _test(case.group, case.name, None if case.ok else wrong)


def _of_output(output: OutputReport) -> str:
    d = output.distance
    if d is None:
        return f"{output.output}: {1 - (output.agreement or 0.0):.2%} of the elements differ"
    if d.pattern:
        return f"{output.output}: {d.pattern} elements are NaN or inf in one model only"
    return f"{output.output}: largest error {figure(d.max_abs)}, tolerance {figure(output.tolerance)}"


def _of_site(site: SiteRecord) -> str:
    return f"largest error of the site alone {figure(site.error)}, tolerance {figure(site.tolerance)}"


def _test(group: str, name: str, failure: str | None) -> ElementTree.Element:
    test = ElementTree.Element("testcase", classname=_plain(group), name=_plain(name), time="0")
    if failure is not None:
        ElementTree.SubElement(test, "failure", message=_plain(failure))
    return test


def _plain(text: str) -> str:
    return _UNWRITABLE.sub("?", text)
