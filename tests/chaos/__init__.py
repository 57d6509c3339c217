"""Faults injected into real studies: real processes, real signals, and a checker that reads files only.

`make chaos` runs it and writes docs/faults.md. The modules:

- program: the command line with workers that train a made-up function, whose scores the checker knows.
- processes: finds the processes of a study, and injects a fault into one of them.
- checker: holds the files of a study to what must be true of them; it imports nothing of the product.
- harness: one study with its faults, resumed until it is finished, and what came of it.
- planted: bugs that are put into a copy of the product, each of which the harness must catch.
"""
