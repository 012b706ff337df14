"""What a run came to, as a page to look at and as figures for papers."""

from reidcore.report.comparison import write_comparison
from reidcore.report.ranked import Opened
from reidcore.report.run import QUERIES, REPORT, write_report

__all__ = ["QUERIES", "REPORT", "Opened", "write_comparison", "write_report"]
