"""Train one image classifier by transfer: backbone, strategy, head, data, loop.

This package knows nothing of searching: it imports neither Ray Tune nor Optuna, and only
`worker.py` imports Ray, so every part of it runs in a debugger and on a machine without Ray.
"""
