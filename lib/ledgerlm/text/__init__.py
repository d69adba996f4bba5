"""Histories as text: serialisers, formats, sanitising, tokenizer."""
