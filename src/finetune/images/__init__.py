"""From folders, manifests and data sets to batches of pixels; nothing here knows of models."""
