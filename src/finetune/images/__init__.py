"""Turn folders, manifests and data sets into batches of pixels; nothing here depends on models."""
