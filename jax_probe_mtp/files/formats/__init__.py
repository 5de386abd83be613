"""Outputs in the formats of other tools: one small reader for each, which turns a line into plain objects."""
