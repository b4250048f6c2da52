"""Records on disk to figures, tables and one HTML page; nothing else: no model is needed, no measure computed anew."""

from triptych.reports.page import build_report
from triptych.reports.reported import Reported, ReportedValue, reported

__all__ = ["Reported", "ReportedValue", "build_report", "reported"]
