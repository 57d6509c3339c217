"""Solve for the head on stored features of a frozen backbone, instead of training it."""
