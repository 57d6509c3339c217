"""Explain a trained model's answers: maps of what speaks for a class, source classes, nearest images."""
