"""What several test files share: where CMake has put the programs that tests run, and models on disk."""

import importlib
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from runner import Runner

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared" / "data"
NANOGPT = SHARED / "nanogpt"

# A shell that runs the tests in its background ignores Ctrl-C for them, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where the tests of the operators compute"
    )


@pytest.fixture(scope="session")
def device(request) -> str:
    """The device that a test of the operators puts its tensors on."""
    chosen = request.config.getoption("device")
    if chosen == "cpu":
        return chosen
    import kvfuse
    import torch

    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no GPU")
    if not kvfuse.build_info()["cuda_loaded"]:
        pytest.fail("the CUDA operators are not built: configure with KVFUSE_CUDA=on")
    return chosen


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


@pytest.fixture
def bench(built, tmp_path) -> Runner:
    """bench_runner in an empty folder."""
    return Runner(built("bench_runner"), tmp_path)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The model of small_gpt2.py in transformers, and the folder that save_pretrained wrote."""
    import small_gpt2

    folder = tmp_path_factory.mktemp("small")
    return small_gpt2.save(folder), folder


@pytest.fixture(scope="session")
def saved_gpt2(tmp_path_factory):
    """GPT-2 (124M) with random weights and the folder that save_pretrained wrote, 500 MB."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    folder = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(folder)
    yield model, folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def nanogpt():
    """nanoGPT's own model.py, as a module."""
    if not (NANOGPT / "model.py").is_file():
        pytest.skip("no ../shared/data next to the checkout: nanoGPT's own model not compared")
    sys.path.insert(0, str(NANOGPT))
    try:
        return importlib.import_module("model")
    finally:
        sys.path.remove(str(NANOGPT))


@pytest.fixture(scope="module")
def client():
    """Of the roofline server's application, in this process."""
    from kvfuse.roofline import server
    from starlette.testclient import TestClient

    with TestClient(server.create_app(server.Settings()), base_url="http://localhost") as client:
        yield client


@pytest.fixture(scope="module")
def live():
    """A roofline server as a process of its own (tests/python/roofline_server.py)."""
    from roofline_server import running

    with running("--no-measure") as server:
        yield server


@pytest.fixture(scope="session")
def browser_page():
    """The roofline page in headless Chromium, on a server of its own (tests/python/roofline_page.py)."""
    for module in ("selenium", "fastapi", "uvicorn", "plotly", "typer"):
        pytest.importorskip(module, reason=f"{module} is not installed: scripts/bootstrap installs it")
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install chromium chromium-driver")
    from roofline_page import Page, chromium, running_server

    with running_server() as address:
        browser = chromium()
        yield Page(browser, address)
        browser.quit()


@pytest.fixture
def page(browser_page):
    """The page at a desk's size, light; afterwards the console must be empty."""
    browser_page.size(1400)
    browser_page.prefer("light")
    browser_page.complaints()
    yield browser_page
    assert browser_page.complaints() == []


@pytest.fixture
def refusals(page):
    """For tests of what the server refuses, which Chromium reports on the console."""
    page.refusals_expected = True
    yield
    assert page.complaints() == []
    page.refusals_expected = False
