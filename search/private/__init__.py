"""Studies with differential privacy: their plan, their secret draws, and their one released model."""
