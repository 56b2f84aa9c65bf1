from .batch_page import write_batch_page
from .page import Change, DecisionShown, Story, write_page, write_report
from .panels import comparison_panels, data_uri, reference_panels

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
