"""Hand a model on from the command line: export it, classify with it, serve it."""
