"""The report: one page on a program, from its store alone."""

from skylevel.report.writing import write_report

__all__ = ["write_report"]
