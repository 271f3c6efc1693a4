"""The report: one page on a program, from its store alone."""

from skylevel.report.writing import has_report, write_report

__all__ = ["has_report", "write_report"]
