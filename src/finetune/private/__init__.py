"""Differentially private heads on frozen features, the cost of searching them, and attacks on models."""
