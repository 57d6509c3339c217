"""Hand a model folder on: as files for other programs, with measured parity, and as a list of its parts."""
