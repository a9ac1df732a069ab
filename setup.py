"""setup.py drives CMake: the C++/CUDA build is described once, in CMakeLists.txt."""

import os
import shutil
import subprocess
import sys

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "tools"))
from build_backend import TORCH, find_torch, has_gpu  # noqa: E402


class AnyPython(bdist_wheel):
    """The library links no libpython: one wheel serves every Python 3."""

    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


class CMakeBuild(build_ext):
    def get_ext_filename(self, fullname):  # a plain shared library: no Python ABI tag
        return os.path.join(*fullname.split(".")) + ".so"

    def run(self):
        self.for_this_machine = bool(self.inplace or self.editable_mode)  # setuptools clears inplace while it builds
        super().run()

    def build_extension(self, ext):
        torch = find_torch()
        if not torch:
            raise SystemExit(f"sparrow: no {TORCH} found; run `pip install torch` first, or set SPARROW_TORCH_DIR")
        # Not build/dev: an isolated pip build records the paths of a temporary cmake and ninja.
        folder = os.path.join(HERE, "build", "pip")
        arguments = [
            f"-DSPARROW_TORCH_DIR={torch}",
            f"-DSPARROW_OUTPUT_DIR={os.path.dirname(os.path.abspath(self.get_ext_fullpath(ext.name)))}",
            f"-DCMAKE_BUILD_TYPE={os.environ.get('SPARROW_BUILD_TYPE', 'Release')}",
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
        ]
        # Both are said every time, or an earlier build's choice would stay in CMake's cache.
        arguments.append(f"-DSPARROW_CUDA={os.environ.get('SPARROW_CUDA') or 'AUTO'}")
        architectures = os.environ.get("CMAKE_CUDA_ARCHITECTURES")
        if not architectures and self.for_this_machine and has_gpu():
            architectures = "native"  # wheels are for every architecture
        key = "CMAKE_CUDA_ARCHITECTURES"
        arguments.append(f"-D{key}={architectures}" if architectures else f"-U{key}")
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count()))
        subprocess.run(["cmake", "-G", "Ninja", "-S", HERE, "-B", folder, *arguments], check=True)
        subprocess.run(["cmake", "--build", folder, "--target", "sparrow_ops", "-j", jobs], check=True)


setup(
    packages=find_packages(".", include=["sparrow_ext*"]) + find_packages("python"),
    package_dir={"sparrow_ext": "sparrow_ext", "sparrow": "python/sparrow"},
    package_data={"sparrow_ext": ["*.so", "py.typed"], "sparrow": ["py.typed", "assets/**/*"]},
    ext_modules=[Extension("sparrow_ext.libsparrow", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": AnyPython},
)
