"""Pretrained networks cut into blocks, their weights, and the three ways to put a new head on them."""
