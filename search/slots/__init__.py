"""Slots, where trials train: warm worker groups, the exchange that feeds them, and their nodes."""
