"""Turn image files into batches of pixels; nothing here depends on models."""
