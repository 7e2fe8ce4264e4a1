"""Checks the rules of docs/ARCHITECTURE.md that a compiler does not see.

Includes point one way, names say what a file holds, and nothing under tests/ goes unused.
Prints every violation; the exit status is 1 when there is one.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {".h", ".cc", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s+["<]([^">]+)[">]', re.MULTILINE)

# folder: what it may include of ours. The most specific folder counts; folders that are not named
# here (server/main.cc, tests, client/cli ...) wire things together and may include anything.
DOMAIN = ["server/store", "server/errors", "compute"]
MAY_INCLUDE = {
    "compute": ["compute"],
    "server/errors": ["server/errors"],
    "server/store": DOMAIN,
    "server/jobs": ["server/jobs", *DOMAIN],
    "server/fsck": ["server/fsck", "server/jobs", *DOMAIN],
    "server/retention": ["server/retention", *DOMAIN],
    "server/ingest": ["server/ingest", *DOMAIN],
    "server/auth": ["server/auth", "compute/tensor"],
    "server/config": ["server/config"],
    "server/metrics": ["server/metrics", "server/config"],
    "server/log": ["server/log"],
    "client": ["client", "compute"],
}

# header: the folders that may include it.
ONLY_IN = {
    r"sqlite3\.h": ["server/store", "tests"],
    r"(cuda|cublas|cusolver|cusparse|nvml|thrust/|cub/).*": [
        "compute/backend/cuda",
        "tests/compute/backend/cuda",
        "tests/bench",
    ],
    r"(grpc|grpcpp|google/protobuf)/.*": ["server", "client", "tests", "cmake/sanitizers"],
    r".*\.pb\.h": ["server", "client", "tests"],
}

FORBIDDEN_NAMES = {"util", "utils", "common", "manager", "helper", "helpers", "impl", "misc"}


def files() -> list[PurePosixPath]:
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "--deduplicate"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [PurePosixPath(line) for line in listing.stdout.splitlines() if (ROOT / line).is_file()]


def is_in(file: PurePosixPath | str, folder: str) -> bool:
    return PurePosixPath(file).is_relative_to(folder)


def include_violations(file: PurePosixPath) -> Iterator[str]:
    ours = ["compute", "server", "client", "tests"]
    folder = max((f for f in MAY_INCLUDE if is_in(file, f)), key=len, default=None)
    for header in INCLUDE.findall((ROOT / file).read_text()):
        allowed = MAY_INCLUDE[folder] if folder else ours
        if PurePosixPath(header).parts[0] in ours and not any(is_in(header, f) for f in allowed):
            yield f"{file}: includes {header}, which {folder}/ must not see"
        for pattern, folders in ONLY_IN.items():
            if re.fullmatch(pattern, header) and not any(is_in(file, f) for f in folders):
                yield f"{file}: includes {header}, which belongs to {', '.join(folders)}"


def name_violations(file: PurePosixPath) -> Iterator[str]:
    words = set(re.split(r"[_.\-]", file.stem.lower()))
    if bad := words & FORBIDDEN_NAMES:
        yield f"{file}: '{bad.pop()}' does not say what the file holds"


def unused_violations(tree: list[PurePosixPath]) -> Iterator[str]:
    """C++ tests and fuzz targets that no CMakeLists.txt names, golden files that no test names."""
    cmake = {f.parent: (ROOT / f).read_text() for f in tree if f.name == "CMakeLists.txt"}
    tests = [f for f in tree if is_in(f, "tests") and f.suffix in {".cc", ".py", ".txt", ".h"}]
    text = "".join((ROOT / f).read_text() for f in tests)
    for file in tree:
        if is_in(file, "tests") and file.suffix == ".cc":
            named = (
                re.search(rf"\b{re.escape(file.name)}\b", cmake.get(folder, ""))
                for folder in file.parents
            )
            if not any(named):
                yield f"{file}: no CMakeLists.txt builds it"
        if is_in(file, "tests/golden") and file.suffix != ".md" and file.name not in text:
            yield f"{file}: no test reads it"


def main() -> int:
    tree = files()
    violations: list[str] = []
    for file in tree:
        if file.suffix in SOURCES:
            violations += include_violations(file)
        if file.suffix in SOURCES or file.suffix == ".py":
            violations += name_violations(file)
    violations += unused_violations(tree)
    print("\n".join(violations) if violations else f"{len(tree)} files, no violation")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
