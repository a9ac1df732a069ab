"""Audits what libsparrow.so and its object files may contain. Exit code 1 where a rule is broken.

    python tools/abi_audit.py LIBRARY [BUILD_FOLDER]

The library may need torch's stable C interface, libc, libm, libstdc++ and libgcc, nothing else: that is what makes one
build load under every torch from 2.10 on, under any Python, with or without CUDA. The objects compiled for a wider
instruction set may share no symbol with the rest: of several copies of an inline function the linker keeps any one, and
an AVX-512 copy on the baseline path would be an illegal instruction on other machines.
"""

import argparse
import pathlib
import re
import subprocess
import sys

STABLE = re.compile(r"(aoti_torch|torch)_\w+")
CUDA_ONLY = re.compile(r"aoti_torch_(?!device_type_)\w*cuda\w*")
SYSTEM = re.compile(r".+@+(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+")
TOOLCHAIN_WEAK = re.compile(r"__gmon_start__|_ITM_\w+|__cxa_finalize|_?_?pthread_\w+|__cxa_thread_atexit_impl")
ISAS = ("avx2", "avx512", "avx512_bf16")


def run(*command: str) -> str:
    """The command's output."""
    return subprocess.run(command, check=True, text=True, capture_output=True).stdout


def undefined_symbols(nm: str) -> list[tuple[str, str]]:
    """(kind, name with version) of each line of `nm -D --undefined-only`."""
    return [(kind, name) for kind, name in (line.split(None, 1) for line in nm.splitlines() if line.strip())]


def library_faults(nm: str, dynamic: str) -> list[str]:
    """What the library needs and may not. `nm`: nm -D --undefined-only, `dynamic`: readelf -d."""
    faults = []
    for kind, name in undefined_symbols(nm):
        weak = kind.lower() in ("w", "v")
        if STABLE.fullmatch(name):
            if CUDA_ONLY.fullmatch(name) and not weak:
                faults.append(f"{name} exists in CUDA builds of torch only: declare it weak")
        elif not SYSTEM.fullmatch(name) and not (weak and TOOLCHAIN_WEAK.fullmatch(name)):
            faults.append(f"{name} is not part of torch's stable interface")
    needed = re.findall(r"\(NEEDED\).*\[(.*?)\]", dynamic)
    faults += [
        f"the library links {lib}" for lib in needed if re.match(r"libpython|libcudart|libc10|libtorch_cuda", lib)
    ]
    if "libtorch.so" not in needed:
        faults.append("libtorch.so is not linked: in a CUDA torch it is what brings libtorch_cuda.so into scope")
    return faults


def stray_symbols(nm: str, isa: str) -> list[str]:
    """Shared (weak, unique) symbols of an object file of this instruction set that do not name its namespace.

    `nm` is mangled. A template of the standard library is fine where one of its arguments lives in the namespace: no
    other object file can have that instance.
    """
    namespace = f"7sparrow{len(isa)}{isa}"
    shared = [line.split()[-2:] for line in nm.splitlines() if re.search(r" [WVu] \S+$", line)]
    return [name for _, name in shared if namespace not in name]


def newest(nm: str, prefix: str) -> str:
    """The highest version of GLIBC, GLIBCXX, ... that the library asks for."""
    versions = {tuple(map(int, v.split("."))) for v in re.findall(rf"@{prefix}_([\d.]+)", nm)}
    return ".".join(map(str, max(versions))) if versions else "none"


def main() -> int:
    """Prints what was looked at and every fault."""
    parser = argparse.ArgumentParser(description="Audits libsparrow.so and its object files.")
    parser.add_argument("library", type=pathlib.Path)
    parser.add_argument("build", type=pathlib.Path, nargs="?", help="build folder, to audit its object files, too")
    arguments = parser.parse_args()

    nm = run("nm", "-D", "--undefined-only", str(arguments.library))
    faults = library_faults(nm, run("readelf", "-d", str(arguments.library)))
    stable = [name for _, name in undefined_symbols(nm) if STABLE.fullmatch(name)]
    versions = ", ".join(f"{prefix} {newest(nm, prefix)}" for prefix in ("GLIBC", "GLIBCXX", "CXXABI"))
    print(f"abi_audit: {len(stable)} stable torch symbols; at most {versions}")

    objects = [
        (isa, path)
        for isa in ISAS
        for path in sorted(arguments.build.glob(f"CMakeFiles/sparrow_cpu_{isa}.dir/**/*.o") if arguments.build else ())
    ]
    if arguments.build and not objects and "x86" in run("uname", "-m"):
        faults.append(f"no object files of {' or '.join(ISAS)} under {arguments.build}")
    for isa, path in objects:
        names = stray_symbols(run("nm", str(path)), isa)
        faults += [f"{path.name} ({isa}) shares {name} with other instruction sets" for name in names]
    print(f"abi_audit: {len(objects)} object files of {', '.join(ISAS)}; {len(faults)} faults")
    for fault in faults:
        print(f"abi_audit: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
