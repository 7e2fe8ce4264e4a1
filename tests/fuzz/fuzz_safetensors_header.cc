// Any bytes are either refused or describe tensors that tile the file exactly.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "compute/formats/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using quantd::compute::ParseSafetensorsHeader;
  using quantd::compute::SafetensorsEntry;
  const auto file_size = static_cast<int64_t>(size);
  const auto header =
      ParseSafetensorsHeader({reinterpret_cast<const std::byte*>(data), size}, file_size);
  if (!header.ok()) return 0;
  int64_t end = -1;
  for (const SafetensorsEntry& entry : header->entries) {
    if (end >= 0 && entry.offset != end) std::abort();
    if (entry.offset < 10 || entry.size < 0 || entry.size > file_size - entry.offset) std::abort();
    if (entry.shape.size() > 8) std::abort();
    // Tensors without elements may say what they like in their other dimensions.
    unsigned __int128 bytes = quantd::compute::SizeOf(entry.dtype);
    for (int64_t dim : entry.shape) {
      if (dim < 0) std::abort();
      bytes *= static_cast<unsigned __int128>(dim);
    }
    if (entry.size > 0 && bytes != static_cast<unsigned __int128>(entry.size)) std::abort();
    if (!header->Find(entry.name).ok()) std::abort();
    end = entry.offset + entry.size;
  }
  if (end >= 0 && end != file_size) std::abort();
  return 0;
}
