"""Instruction tuning: questions about a client in words, and the likelihood of each of a closed set of answers."""
