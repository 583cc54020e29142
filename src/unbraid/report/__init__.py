"""The report: one HTML file, pictures, and the same for a terminal. Made from plain data, not from the trainer."""

from unbraid.report.figures import save_headline
from unbraid.report.page import write_report
from unbraid.report.terminal import score_table, transcript_text
from unbraid.report.views import Colophon, Oracle, Report, RunView, Token, Transcript, transcript

__all__ = [
    "Colophon",
    "Oracle",
    "Report",
    "RunView",
    "Token",
    "Transcript",
    "save_headline",
    "score_table",
    "transcript",
    "transcript_text",
    "write_report",
]
