"""Runs clang-tidy over every C++ source of the repository, two or more at a time.

A file that was clean is not looked at again until it, a header of ours that it includes, or
.clang-tidy changes: its content hash is remembered in build/lint/clean/.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "lint"
CLEAN = BUILD / "clean"
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def configure() -> list[Path]:
    """Makes compile_commands.json with clang and the generated headers; returns our sources."""
    options = ["-DCMAKE_CXX_COMPILER=clang++", "-DQUANTD_CUDA=OFF"]
    options += ["-DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON", "-DCMAKE_BUILD_TYPE=Debug"]
    subprocess.run(
        ["cmake", "-S", ROOT, "-B", BUILD, "-G", "Ninja", "-Wno-dev", *options],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    generated = subprocess.run(
        ["ninja", "-C", BUILD, "-t", "targets", "all"], check=True, capture_output=True, text=True
    )
    headers = [line.split(":")[0] for line in generated.stdout.splitlines() if ".pb.h:" in line]
    subprocess.run(["ninja", "-C", BUILD, *headers], check=True, stdout=subprocess.DEVNULL)
    commands = json.loads((BUILD / "compile_commands.json").read_text())
    files = {Path(command["file"]) for command in commands}
    return sorted(file for file in files if not file.is_relative_to(ROOT / "build"))


@cache
def content_hash(file: Path) -> str:
    """Hash of the file and, transitively, of the headers of this repository that it includes."""
    text = file.read_text()
    digest = hashlib.sha256(text.encode())
    for name in INCLUDE.findall(text):
        header = ROOT / name
        if name.endswith(".pb.h"):
            digest.update(protos_hash())
        elif header.is_file():
            digest.update(content_hash(header).encode())
    return digest.hexdigest()


@cache
def protos_hash() -> bytes:
    digest = hashlib.sha256()
    for proto in sorted((ROOT / "proto").rglob("*.proto")):
        digest.update(proto.read_bytes())
    return digest.digest()


def check(file: Path) -> str:
    """What clang-tidy has to say about the file; empty when it is clean."""
    result = subprocess.run(
        ["clang-tidy", "--quiet", "-p", BUILD, file], capture_output=True, text=True
    )
    if result.returncode == 0:
        return ""
    return result.stdout or result.stderr or f"clang-tidy {file}: exit status {result.returncode}"


def main() -> int:
    files = configure()
    version = subprocess.run(["clang-tidy", "--version"], capture_output=True).stdout
    setup = hashlib.sha256(version + (ROOT / ".clang-tidy").read_bytes()).hexdigest()
    CLEAN.mkdir(parents=True, exist_ok=True)
    stamps = {
        file: CLEAN / hashlib.sha256(f"{file}{setup}{content_hash(file)}".encode()).hexdigest()
        for file in files
    }
    pending = [file for file in files if not stamps[file].exists()]
    print(f"clang-tidy: {len(pending)} of {len(files)} files to check", flush=True)
    failed = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for file, findings in zip(pending, pool.map(check, pending), strict=True):
            if findings:
                failed += 1
                print(findings, flush=True)
            else:
                stamps[file].touch()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
