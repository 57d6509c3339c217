"""On a CUDA device: what training promises holds there too (`python -m benchmarks.gpu` prints the figures).

Needs no Ray: `python -m pytest --noconftest -m gpu tests/test_gpu.py`.
"""

from pathlib import Path

import pytest
import torch

from benchmarks import gpu_right
from benchmarks.gpu_setup import Setup

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("check", list(gpu_right.PARTS))
def test_what_training_promises_holds_on_a_gpu(check: str, tmp_path: Path) -> None:
    found = gpu_right.PARTS[check](Setup(torch.device("cuda", 0), False, None, None, tmp_path))
    assert found["ok"], found
