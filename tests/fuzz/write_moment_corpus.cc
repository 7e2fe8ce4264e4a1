// Writes the seeds of fuzz_second_moment_bytes into a folder: a small moment of each kind and
// layout, with and without its checksum. usage: write_moment_corpus FOLDER
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/second_moment/second_moment.h"
#include "tests/fuzz/corpus_file.h"

namespace quantd::fuzz {
namespace {

struct Seed {
  const char* name;
  compute::MomentSpec spec;
};

using compute::MomentKind;

const Seed kSeeds[] = {
    {"full", {.cols = 3, .sample_rows = 2}},
    {"blocks",
     {.layout = compute::MomentLayout::kBlockDiagonal,
      .block_size = 2,
      .cols = 4,
      .sample_rows = 0}},
    {"weighted", {.kind = MomentKind::kWeighted, .cols = 2, .sample_rows = 1}},
    {"cross", {.kind = MomentKind::kCross, .cols = 2, .paired_cols = 2, .sample_rows = 1}},
    {"residual", {.kind = MomentKind::kResidual, .cols = 2, .paired_cols = 3, .sample_rows = 1}},
};

std::string BytesOf(const compute::MomentSpec& spec) {
  compute::SecondMoment moment = compute::SecondMoment::Create(spec).value();
  std::vector<double> rows(4 * spec.TokenValues());
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<double>(i % 5) - 1.5;
  moment.SetPending(rows);
  moment.FoldPending();
  rows.resize(spec.TokenValues());
  rows[0] = 0.1;  // no float
  moment.SetPending(rows);
  moment.AddTokens(5);
  if (spec.kind == MomentKind::kWeighted) moment.AddWeight(2.75);
  if (spec.sample_rows > 0) moment.mutable_sample().Add(17, std::vector<float>(spec.cols, 0.5F));
  return moment.Serialize();
}

int WriteAll(const std::string& folder) {
  for (const Seed& seed : kSeeds) {
    const std::string bytes = BytesOf(seed.spec);
    // The target's first byte: whether it is to add the checksum.
    if (!WriteCorpusFile(folder + "/" + seed.name,
                         absl::StrCat(absl::string_view("\0", 1), bytes)) ||
        !WriteCorpusFile(
            folder + "/" + seed.name + "_open",
            absl::StrCat("\1", absl::string_view(bytes).substr(0, bytes.size() - 8)))) {
      return 1;
    }
  }
  return 0;
}

}  // namespace
}  // namespace quantd::fuzz

int main(int argc, char** argv) {
  if (argc == 2) return quantd::fuzz::WriteAll(argv[1]);
  std::fprintf(stderr, "usage: write_moment_corpus FOLDER\n");
  return 2;
}
