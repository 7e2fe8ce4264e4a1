#!/usr/bin/env bash
# Packs programs with the libraries that they load into one archive, for a machine that has an
# NVIDIA driver and CUDA's libraries but neither gRPC nor Abseil:
#
#   tools/bundle.sh BUILD ARCHIVE     BUILD: a build folder, ARCHIVE: the .tar.gz to write
#
# Programs keep their places in the build folder; libraries are in lib/. The C and C++ run-time libraries and CUDA's stay out: the machine's own are used.
set -euo pipefail

readonly build="$1" archive="$2"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/lib"

programs=(server/quantd client/cli/quantctl tests/bench/service_bench tests/bench/cuda/cuda_bench
          tests/compute/backend/cuda/cuda_conformance_test)
for program in "${programs[@]}"; do
  mkdir -p "$folder/$(dirname "$program")"
  strip -o "$folder/$program" "$build/$program"
  ldd "$build/$program" | awk '/=> \// {print $3}'
done | sort -u | while read -r library; do
  case "$(basename "$library")" in
    libc.so* | libm.so* | libdl.so* | librt.so* | libpthread.so* | ld-linux*) ;;
    libstdc++.so* | libgcc_s.so* | libcu* | libnv*) ;;
    *) strip --strip-unneeded -o "$folder/lib/$(basename "$library")" "$(readlink -f "$library")" ;;
  esac
done
tar -C "$folder" -c . | gzip -9 > "$archive"
ls -l "$archive" >&2
