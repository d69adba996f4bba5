"""Text recipes that LLM4ES (arXiv 2508.05688) compares with: summaries, profiles and instruction rows as documents."""
