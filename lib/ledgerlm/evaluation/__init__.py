"""Judging representations: protocol, metrics, leaderboard and report."""
