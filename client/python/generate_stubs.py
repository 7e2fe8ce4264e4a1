"""Generates the gRPC stubs of proto/quantd/v1 into quantd/v1.

The stubs are not checked in; `./dev setup` and `./dev build` run this script.
Needs grpcio-tools. Does nothing where the stubs are newer than every proto file.
"""

import sys
from importlib.resources import files
from pathlib import Path

PACKAGE_ROOT = Path(__file__).resolve().parent
PROTO_ROOT = PACKAGE_ROOT.parent.parent / "proto"
OUTPUT = PACKAGE_ROOT / "quantd" / "v1"


def main() -> int:
    """Returns protoc's exit status."""
    protos = sorted((PROTO_ROOT / "quantd" / "v1").glob("*.proto"))
    if not protos:
        print(f"no proto files below {PROTO_ROOT / 'quantd' / 'v1'}", file=sys.stderr)
        return 1
    marker = OUTPUT / "__init__.py"  # written last
    inputs = [*protos, Path(__file__)]
    if marker.exists() and marker.stat().st_mtime > max(p.stat().st_mtime for p in inputs):
        return 0

    from grpc_tools import protoc  # here, so that an up-to-date checkout does not need it

    OUTPUT.mkdir(parents=True, exist_ok=True)
    status: int = protoc.main(
        [
            "protoc",
            f"--proto_path={PROTO_ROOT}",
            f"--proto_path={files('grpc_tools') / '_proto'}",
            f"--python_out={PACKAGE_ROOT}",
            f"--pyi_out={PACKAGE_ROOT}",
            f"--grpc_python_out={PACKAGE_ROOT}",
            *(str(proto.relative_to(PROTO_ROOT)) for proto in protos),
        ]
    )
    if status == 0:
        marker.write_text('"""Stubs generated from proto/quantd/v1. Do not edit."""\n')
    return status


if __name__ == "__main__":
    sys.exit(main())
