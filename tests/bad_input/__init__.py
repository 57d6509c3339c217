"""A table of bad inputs, each with the line that the user gets. `python -m tests.bad_input` writes
docs/bad-input.md, and fails where a case hangs or ends in a traceback.
"""
