"""Run the frozen blocks once per image, with the fastest kernels, and store the features for all trials."""
