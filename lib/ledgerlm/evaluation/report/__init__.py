"""Sections and page of the report: what a run found, drawn from its facts alone."""
