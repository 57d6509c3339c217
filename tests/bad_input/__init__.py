"""A table of bad inputs, each with the line that the user gets: `python -m tests.bad_input` writes
docs/bad-input.md, and tests/test_bad_input.py holds the program to it.
"""
