"""The one place that starts Spark and the one that starts Ray."""
