"""Decide whether the winner of a search is really better: scores over seeds become words with intervals."""
