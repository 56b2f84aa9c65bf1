"""Pictures and pages for people."""

from microseg.report.batch_page import write_batch_page
from microseg.report.page import Change, DecisionShown, Story, write_page, write_report
from microseg.report.panels import comparison_panels, data_uri, reference_panels

__all__ = [
    "Change",
    "DecisionShown",
    "Story",
    "comparison_panels",
    "data_uri",
    "reference_panels",
    "write_batch_page",
    "write_page",
    "write_report",
]
