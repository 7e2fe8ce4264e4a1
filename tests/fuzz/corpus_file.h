#pragma once

#include <cstdio>
#include <fstream>
#include <string>

namespace quantd::fuzz {

// Writes one input of a corpus; false, with a line on stderr, where it cannot.
inline bool WriteCorpusFile(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary);
  file << bytes;
  if (file.flush()) return true;
  std::fprintf(stderr, "%s: cannot be written\n", path.c_str());
  return false;
}

}  // namespace quantd::fuzz
