"""Which images there are: folders, manifests and data sets, their splits, and what a file holds."""
