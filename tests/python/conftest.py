"""What several test files share: where CMake has put the programs that tests run."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def find_built(name: str) -> Path:
    """A built program by its path inside the build folder: KVFUSE_BUILD_DIR, or build/cpu."""
    path = REPOSITORY / os.environ.get("KVFUSE_BUILD_DIR", "build/cpu") / name
    if not path.is_file():
        pytest.fail(
            f"{path} is not built: run `make test`, or set KVFUSE_BUILD_DIR to the folder that holds it"
        )
    return path


@pytest.fixture(scope="session")
def built():
    return find_built
