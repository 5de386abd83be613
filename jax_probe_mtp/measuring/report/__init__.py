"""Measurements for readers: tables, figures and pages of what bench, align and verify found."""
