"""One page about a study, `report.html`: self-contained, and from the record and the model folder alone."""
