"""The package around the operators: loading, what it says of itself, and its self-check."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import kvfuse
import pytest
import torch
from kvfuse import __main__, _library, _self_check

ROOT = Path(__file__).resolve().parents[2]


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    # Elsewhere than in the checkout's root: nothing is to be found by accident.
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python"), **environment}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT / "tests"
    )


def test_build_info():
    info = kvfuse.build_info()
    assert info["version"] == kvfuse.__version__ == (ROOT / "VERSION").read_text().strip()
    _library.check_torch(info["torch_version"], torch.__version__)
    assert info["active_isa"] in info["available_isas"] and info["available_isas"][0] == "portable"
    assert info["compiler"]
    assert {64, 80, 96, 128} <= set(info["cuda_head_dims"]) <= set(info["supported_head_dims"])
    assert info["cuda"] is bool(info["cuda_architectures"])
    assert info["cuda_loaded"] is (info["cuda"] and torch.cuda.is_available())


@pytest.mark.parametrize("isa", kvfuse.build_info()["available_isas"])
def test_self_check_on_every_instruction_set(isa):
    result = run_python("-m", "kvfuse", "--self-check", KVFUSE_ISA=isa)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"instruction set: {isa} " in result.stdout
    for operator in (
        "kv_append",
        "decode_attention",
        "append_decode_attention",
        "prefill_attention",
        "quantize_kv",
    ):
        assert f"ok     {operator}" in result.stdout
    assert "FAILED" not in result.stdout and result.stderr == ""


def test_an_unknown_instruction_set_is_named():
    result = run_python("-m", "kvfuse", "--self-check", KVFUSE_ISA="mmx")
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith(
        "kvfuse: error: KVFUSE_ISA: expected one that this machine runs (portable"
    )
    assert result.stderr.endswith(', got "mmx"\n')


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_self_check_finds_a_wrong_result(monkeypatch, capsys, factor):
    right = kvfuse.ops.decode_attention
    monkeypatch.setattr(kvfuse.ops, "decode_attention", lambda *a, **k: right(*a, **k) * factor)
    with pytest.raises(
        RuntimeError, match=r"self-check failed: decode_attention \(float32 cache\): largest error"
    ):
        kvfuse.self_check()
    assert __main__.main(["--self-check"]) == 1
    assert "FAILED decode_attention (int8 cache): largest error" in capsys.readouterr().out


def test_self_check_reports_an_operator_that_raises(monkeypatch):
    monkeypatch.setattr(kvfuse.ops, "kv_append", None)
    failed = [check for check in _self_check.run_checks() if not check.passed]
    assert [check.name for check in failed] == ["kv_append (float32 cache)", "kv_append (int8 cache)"]
    assert "TypeError" in _self_check.describe(failed[0])


def test_self_check_passes():
    kvfuse.self_check()


def test_command_line(capsys):
    with pytest.raises(SystemExit) as exit_of:
        __main__.main(["--version"])
    assert exit_of.value.code == 0 and capsys.readouterr().out == f"kvfuse {kvfuse.__version__}\n"
    assert __main__.main([]) == 0 and "--self-check" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_of:
        __main__.main(["--selfcheck"])
    assert exit_of.value.code == 2


def test_pytorch_versions_are_compared_as_versions():
    _library.check_torch("2.11.0+cu130", "2.11.1+cpu")
    for found in ("2.9.0", "2.12.0", "3.11.0", "2.1.1"):
        message = rf"expected PyTorch 2\.11\.\* \(built with 2\.11\.0\), found {found} \(rebuild kvfuse"
        with pytest.raises(ImportError, match=message):
            _library.check_torch("2.11.0", found)


def test_a_build_folder_without_libraries_is_named(tmp_path):
    (tmp_path / _library.OPERATORS).touch()  # the file that names PyTorch's version is missing
    result = run_python("-c", "import kvfuse", KVFUSE_BUILD_DIR=str(tmp_path))
    assert result.returncode == 1
    expected = f"kvfuse: expected libkvfuse_ops.so and torch_version.txt in {tmp_path}, found none (build it"
    assert f"ImportError: {expected}" in result.stderr


def test_a_damaged_build_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(_library, "folder", lambda: tmp_path)
    (tmp_path / _library.OPERATORS).write_text("not a library")
    (tmp_path / _library.TORCH_VERSION).write_text(torch.__version__)
    with pytest.raises(ImportError, match=r"libkvfuse_ops\.so does not load .*; rebuild kvfuse"):
        _library.load()
    with pytest.raises(ImportError, match=r"expected .*_C.* found none \(build kvfuse with this Python, 3"):
        _library._import_bindings(tmp_path / _library.BINDINGS)


def install(folder: Path) -> Path:
    """Copies the package as pip installs it, but for the CUDA library, into `folder`."""
    package = folder / "kvfuse"
    shutil.copytree(ROOT / "python/kvfuse", package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in (_library.OPERATORS, _library.BINDINGS, _library.TORCH_VERSION):
        shutil.copy(_library.folder() / name, package)
    return package


def test_importing_the_package_imports_nothing_but_pytorch_and_numpy():
    code = """if True:
        import numpy, sys, torch
        before = set(sys.modules)
        import kvfuse
        new = {name.partition(".")[0] for name in set(sys.modules) - before}
        print(*(name for name in new - sys.stdlib_module_names if not name.startswith("_sysconfigdata")))
    """
    result = run_python("-c", code)
    assert result.returncode == 0 and result.stdout == "kvfuse\n", result.stdout + result.stderr


def test_the_installed_package_finds_the_libraries_beside_it(tmp_path):
    package = install(tmp_path)
    code = (
        "import kvfuse, torch; torch.ops.kvfuse.decode_attention; kvfuse.self_check(); print(kvfuse.__file__)"
    )
    result = run_python("-c", code, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(package / "__init__.py")


CUDA_LIBRARY = "libkvfuse_ops_cuda.so"
WITH_GPU = "import torch; torch.cuda.is_available = lambda: True; import kvfuse; "
cuda_build = pytest.mark.skipif(not kvfuse.build_info()["cuda"], reason="the CUDA operators are not built")


@cuda_build
def test_the_cuda_library_loads_without_a_driver_and_registers_every_operator():
    code = """if True:
        import kvfuse, torch
        cpu_alone = {"kvfuse::linear", "kvfuse::pack_weight", "kvfuse::quantize_weight"}
        names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("kvfuse::")]
        names = [name for name in names if name not in cpu_alone]
        def registered():
            return [torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA") for name in names]
        gpu = torch.cuda.is_available()
        assert len(names) == 7 and registered() == [gpu] * 7 and kvfuse.build_info()["cuda_loaded"] is gpu
        for _ in range(2):
            kvfuse._C.load_cuda_operators()
            assert registered() == [True] * 7 and kvfuse.build_info()["cuda_loaded"]
        kvfuse.self_check()
    """
    result = run_python("-c", code)
    assert result.returncode == 0 and result.stderr == "", result.stderr


@cuda_build
def test_importing_the_package_loads_the_cuda_library_where_there_is_a_gpu():
    result = run_python("-c", WITH_GPU + "print(kvfuse.build_info()['cuda_loaded'])")
    assert result.returncode == 0 and result.stdout == "True\n", result.stderr


@cuda_build
def test_a_missing_or_damaged_cuda_library_is_named(tmp_path):
    package = install(tmp_path)
    code = WITH_GPU + "print(kvfuse.build_info()['cuda']); kvfuse._C.load_cuda_operators()"
    result = run_python("-c", code, PYTHONPATH=str(tmp_path))
    assert result.stdout == "False\n"
    assert (
        f"RuntimeError: expected {CUDA_LIBRARY} in {package}, beside libkvfuse_ops.so, found" in result.stderr
    )
    (package / CUDA_LIBRARY).write_text("not a library")
    result = run_python("-c", code, PYTHONPATH=str(tmp_path))
    assert f"ImportError: kvfuse: {CUDA_LIBRARY} does not load (" in result.stderr
    assert "); build kvfuse again with this PyTorch" in result.stderr


def test_loading_cuda_operators_that_were_not_built():
    if kvfuse.build_info()["cuda_architectures"]:
        pytest.skip("the CUDA operators are built")
    with pytest.raises(RuntimeError, match=r"^kvfuse was built without CUDA operators \(configure with KVF"):
        kvfuse._C.load_cuda_operators()


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({}, "loaded (built for 80, 90+PTX; head sizes: 64, 128)"),
        (
            {"cuda_loaded": False},
            "not loaded, PyTorch finds no GPU (built for 80, 90+PTX; head sizes: 64, 128)",
        ),
        ({"cuda": False}, "missing (the library was built but is not beside the others)"),
        ({"cuda": False, "cuda_architectures": ""}, "not built"),
    ],
)
def test_what_the_self_check_says_of_cuda(changed, text):
    info = {
        "cuda": True,
        "cuda_loaded": True,
        "cuda_architectures": "80, 90+PTX",
        "cuda_head_dims": [64, 128],
    }
    assert __main__._cuda_state(info | changed) == text
