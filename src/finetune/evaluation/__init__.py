"""Evaluation of a model: the metrics of a split, calibrated probabilities, answers kept for the record."""
