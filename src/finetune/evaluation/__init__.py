"""How good a model is: the metrics of a split, calibrated probabilities, answers kept for the record."""
