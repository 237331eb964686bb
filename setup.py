"""Builds the operator libraries and kvfuse._C with CMake and packs them into the package."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """CMakeLists.txt knows what to build; this only says where the libraries go."""

    def run(self):
        self.inplace = self.inplace or self.editable_mode
        package_dir = Path(self.get_ext_fullpath("kvfuse._C")).resolve().parent
        build_dir = Path(self.build_temp).resolve()
        bin_dirs = [
            f"{Path(sys.executable).parent}",
            os.environ["PATH"],
        ]  # cmake and ninja of a venv not activated
        env = os.environ | {"PATH": os.pathsep.join(bin_dirs)}
        settings = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": package_dir,
            "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
            "CMAKE_INSTALL_RPATH": "$ORIGIN;$ORIGIN/../torch/lib",
            "KVFUSE_CUDA": os.environ.get("KVFUSE_CUDA", "auto"),
            "KVFUSE_RUNNER": "OFF",
            "KVFUSE_TESTS": "OFF",
            "Python_EXECUTABLE": sys.executable,
        }
        # Fresh: an earlier configuration names the temporary environment of an earlier pip.
        configure = ["cmake", "--fresh", "-G", "Ninja", "-S", ROOT, "-B", build_dir]
        subprocess.run(
            [*configure, *(f"-D{key}={value}" for key, value in settings.items())], env=env, check=True
        )
        jobs = subprocess.run(
            [ROOT / "scripts/compile_jobs"], capture_output=True, text=True, check=True
        ).stdout
        build = ["cmake", "--build", build_dir, "--parallel", jobs.strip(), "--target", "kvfuse_python"]
        subprocess.run(build, env=env, check=True)


setup(ext_modules=[Extension("kvfuse._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
