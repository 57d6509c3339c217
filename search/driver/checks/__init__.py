"""Checks before a study: its images and weights, the labels of its images, and its cost."""
