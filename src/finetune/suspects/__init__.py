"""Doubts about a data set: near-duplicates, shortcuts and labels that may be wrong. Imports no torch."""
