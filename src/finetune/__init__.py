"""Train one image classifier by transfer: backbone, strategy, head, data, loop.

This package is independent of the search: it imports neither Ray Tune nor Optuna, and only
`worker.py` imports Ray, so every part of it runs in a debugger and on a machine without Ray.
"""
