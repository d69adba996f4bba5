"""Enrichment engines that are language models; each module imports its library only when the engine is built."""
