"""Configurations, pipelines, records of runs and stages, progress."""
