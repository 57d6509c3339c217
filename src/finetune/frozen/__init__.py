"""Frozen blocks: run once for each image, by the fastest way, and stored for all trials."""
