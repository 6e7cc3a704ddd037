import os
from pathlib import Path

import pytest

from latentfit_bench.datasets import DATA_VARIABLE, ImageData, load_mnist


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    folder = os.environ.get(DATA_VARIABLE)
    if not folder or not Path(folder, "mnist").is_dir():
        pytest.skip(
            f"needs MNIST: set {DATA_VARIABLE} to a folder whose sub-folder mnist/ holds the four "
            "IDX files (https://ossci-datasets.s3.amazonaws.com/mnist/)"
        )
    return Path(folder)


@pytest.fixture(scope="session")
def mnist(mnist_folder: Path) -> ImageData:
    return load_mnist(mnist_folder)
