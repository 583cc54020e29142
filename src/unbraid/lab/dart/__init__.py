"""The claims run of DART (arXiv 2602.00994): methods, cells, verdicts, pages."""
