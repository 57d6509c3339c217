"""The search of `head_search` with a fresh view of every image in every epoch: random crops and flips.

    python -m benchmarks.augmented_search [--images DIR --weights FILE] [--quick]

Epoch e of every trial sees view e of each image, so the features of a view are computed once for all
trials; nothing is reused from one epoch to the next.
"""

from benchmarks.head_search import SPACE, compare
from benchmarks.workload import workload

if __name__ == "__main__":
    with workload(__doc__ or "") as load:
        compare(load, SPACE, {"crop_scale": 0.5}, name="augmented")
