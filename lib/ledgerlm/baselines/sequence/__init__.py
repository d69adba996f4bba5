"""Representations learnt from event sequences without labels: CoLES, CPC, RTD, NSP, NPPR, IFTPP and DeTPP."""
