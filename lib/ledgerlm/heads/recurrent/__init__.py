"""Heads that read a history event by event: LSTM and 1-D CNN with client metadata and external factors."""
