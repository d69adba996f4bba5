"""ALIMN: a network that fuses what a client's texts say with structured features; docs/alimn.md has the formulas."""
