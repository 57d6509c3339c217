"""What every test may use: where the material lies, and small real images."""

from pathlib import Path

import pytest

MATERIAL = Path(__file__).parents[2] / "shared" / "material"


@pytest.fixture(scope="session")
def material() -> Path:
    """Folder with real ImageNet weights and real image sets; the test is skipped where it is absent."""
    if not MATERIAL.is_dir():
        pytest.skip("no ../shared/material beside the checkout")
    return MATERIAL
