"""Pretrained networks cut into blocks, their weights, and the three strategies to put a new head on them."""
