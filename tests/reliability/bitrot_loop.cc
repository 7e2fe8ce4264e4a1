// Damages stored blobs at random and reads them as the server does: every bit flip, truncation and
// overwritten range must be DATA_LOSS. Prints what it did as one JSON object; the exit status is 1
// where damage went unnoticed.

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "server/store/local_blob_store.h"

namespace quantd::server {
namespace {

void WriteFile(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

enum class Damage { kBitFlip, kTruncation, kZeroedRange, kAppended, kSwapped };
constexpr const char* kNames[] = {"bit flips", "truncations", "zeroed ranges", "appended bytes",
                                  "swapped files"};

class Loop {
 public:
  Loop(const std::string& directory, uint64_t seed) : directory_(directory), random_(seed) {
    store_ = std::move(OpenLocalBlobStore(directory).value());
    // Every size class: one byte, within a read, around the digest's pieces of 1 MiB.
    for (const int64_t size : {int64_t{1}, int64_t{4}, int64_t{100}, int64_t{4096}, int64_t{70'000},
                               (int64_t{1} << 20) - 1, (int64_t{1} << 20) + 1}) {
      std::string bytes(static_cast<size_t>(size), '\0');
      for (char& c : bytes) c = static_cast<char>(random_());
      blobs_.push_back(store_->Put("acme", bytes).value());
      contents_.push_back(std::move(bytes));
    }
  }

  // Whether the damage was noticed by both ways of reading.
  bool RunOnce() {
    const size_t which = Below(blobs_.size() * 3) % blobs_.size();
    // Large ones are slow to read: most of the time a smaller one.
    const size_t index = which >= 5 && Below(10) > 0 ? which - 5 : which;
    const BlobRef& blob = blobs_[index];
    const std::string path = BlobFile(directory_, blob.name, /*staging=*/false).value();
    const std::string damaged = Damaged(contents_[index], index);
    WriteFile(path, damaged);
    const bool noticed = absl::IsDataLoss(store_->Open(blob).status()) &&
                         absl::IsDataLoss(store_->ReadAll(blob).status());
    WriteFile(path, contents_[index]);
    return noticed;
  }

  // The undamaged blobs still read: a store that refuses everything notices nothing.
  bool AllWhole() {
    for (size_t i = 0; i < blobs_.size(); ++i) {
      const auto bytes = store_->ReadAll(blobs_[i]);
      if (!bytes.ok() || *bytes != contents_[i]) return false;
    }
    return true;
  }

  const std::vector<int64_t>& counts() const { return counts_; }

 private:
  size_t Below(size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random_); }

  std::string Damaged(const std::string& whole, size_t index) {
    std::string bytes = whole;
    // Half of all are single bits, the hardest to notice.
    const size_t draw = Below(8);
    const auto damage = draw < 4 ? Damage::kBitFlip : static_cast<Damage>(draw - 3);
    const size_t at = Below(bytes.size());
    switch (damage) {
      case Damage::kBitFlip:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << Below(8)));
        break;
      case Damage::kTruncation:
        bytes.resize(at);
        break;
      case Damage::kZeroedRange: {
        const size_t end = std::min(bytes.size(), at + 512);
        for (size_t i = at; i < end; ++i) bytes[i] = '\0';
        if (bytes == whole) bytes[at] = '\1';  // there were zeros
        break;
      }
      case Damage::kAppended:
        bytes.push_back(static_cast<char>(random_()));
        break;
      case Damage::kSwapped:
        bytes = contents_[(index + 1) % contents_.size()];
        break;
    }
    ++counts_[static_cast<size_t>(damage)];
    return bytes;
  }

  const std::string directory_;
  std::mt19937_64 random_;
  std::unique_ptr<BlobStore> store_;
  std::vector<BlobRef> blobs_;
  std::vector<std::string> contents_;
  std::vector<int64_t> counts_ = std::vector<int64_t>(std::size(kNames), 0);
};

int Main(int argc, char** argv) {
  CLI::App app{"Damages stored blobs and reads them."};
  int64_t runs = 10'000;
  uint64_t seed = 1;
  std::string directory;
  app.add_option("--runs", runs, "damages [10000]");
  app.add_option("--seed", seed);
  app.add_option("--dir", directory, "an empty directory")->required();
  CLI11_PARSE(app, argc, argv);
  Loop loop(directory, seed);
  int64_t unnoticed = 0;
  for (int64_t run = 0; run < runs; ++run) unnoticed += loop.RunOnce() ? 0 : 1;
  const bool whole = loop.AllWhole();
  std::cout << "{\"runs\": " << runs << ", \"seed\": " << seed << ", \"unnoticed\": " << unnoticed
            << ", \"whole_ones_read\": " << (whole ? "true" : "false");
  for (size_t i = 0; i < std::size(kNames); ++i) {
    std::cout << ", \"" << kNames[i] << "\": " << loop.counts()[i];
  }
  std::cout << "}\n";
  return unnoticed == 0 && whole ? 0 : 1;
}

}  // namespace
}  // namespace quantd::server

int main(int argc, char** argv) { return quantd::server::Main(argc, argv); }
