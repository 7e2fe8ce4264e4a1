#include "compute/backend/cpu/lattice_codes.h"

#include <algorithm>
#include <iterator>
#include <vector>

#include "compute/backend/cpu/host_memory.h"
#include "compute/coding/token_alphabet.h"

namespace quantd::compute {
namespace {

// Rows [first, first + rows) of Z, row-major, from codes as they are kept: C x R.
std::vector<int32_t> RowMajor(const Tensor& codes, int64_t first, int64_t rows) {
  const int64_t cols = codes.dim(0);
  const int64_t stride = codes.dim(1);
  const int32_t* from = codes.as<int32_t>().data() + first;
  std::vector<int32_t> to(rows * cols);
  constexpr int64_t kSquare = 32;
  for (int64_t r = 0; r < rows; r += kSquare) {
    for (int64_t c = 0; c < cols; c += kSquare) {
      for (int64_t i = r; i < std::min(r + kSquare, rows); ++i) {
        for (int64_t j = c; j < std::min(c + kSquare, cols); ++j) {
          to[i * cols + j] = from[j * stride + i];
        }
      }
    }
  }
  return to;
}

void AddColumn(absl::Span<const int32_t> column, TokenCounts& counts) {
  const TokenAlphabet finest(TokenAlphabet::kMaxSplit);
  for (const int32_t z : column) ++counts[finest.TokenOf(TokenAlphabet::Zigzag(z))];
}

}  // namespace

absl::StatusOr<CodeCounts> CpuCountCodes(WorkerPool& pool, Stream& stream,
                                         const DeviceTensor& codes, int64_t first, int64_t rows) {
  const int64_t cols = codes.dim(0);
  const absl::Span<const int32_t> all = HostTensor(codes).as<int32_t>();
  const auto column = [&](int64_t c) { return all.subspan(c * codes.dim(1) + first, rows); };
  std::vector<double> squares(cols);
  pool.ParallelFor(0, cols, 16, [&](int64_t b, int64_t e) {
    for (int64_t c = b; c < e; ++c) {
      for (const int32_t z : column(c)) squares[c] += static_cast<double>(z) * z;
    }
  });
  CodeCounts counts = {.values = rows * cols,
                       .bin_of_column = BinColumns(squares, rows),
                       .of_bin = std::vector<TokenCounts>(kSpreadBins)};
  pool.ParallelFor(0, kSpreadBins, 1, [&](int64_t bin, int64_t) {
    TokenCounts& of_bin = counts.of_bin[bin];
    for (int64_t c = 0; c < cols; ++c) {
      if (counts.bin_of_column[c] != bin) continue;
      of_bin.resize(TokenAlphabet(TokenAlphabet::kMaxSplit).size());
      AddColumn(column(c), of_bin);
    }
  });
  if (const int64_t large = CountLargeValues(counts);
      large > 0 && large <= MostLargeValues(counts.values)) {
    for (int64_t c = 0; c < cols; ++c) {
      const absl::Span<const int32_t> codes_of_column = column(c);
      std::copy_if(codes_of_column.begin(), codes_of_column.end(), std::back_inserter(counts.large),
                   IsLargeValue);
    }
  }
  if (absl::Status status = stream.CheckCancelled(); !status.ok()) return status;
  return counts;
}

absl::StatusOr<CodedIntegers> CpuEncodeCodes(Stream& stream, const DeviceTensor& codes,
                                             int64_t first, int64_t rows,
                                             const CodingModel& model) {
  if (absl::Status status = stream.CheckCancelled(); !status.ok()) return status;
  return EncodeIntegers(RowMajor(HostTensor(codes), first, rows), model);
}

absl::StatusOr<DeviceTensor> CpuDecodeCodes(Stream& stream, const CodedIntegersView& coded,
                                            int64_t rows, int64_t cols) {
  if (absl::Status status = stream.CheckCancelled(); !status.ok()) return status;
  const absl::StatusOr<std::vector<int32_t>> values = DecodeIntegers(coded, rows, cols);
  if (!values.ok()) return values.status();
  absl::StatusOr<Tensor> codes = Tensor::Create(DType::kI32, {rows, cols});
  if (!codes.ok()) return codes.status();
  std::copy(values->begin(), values->end(), codes->as<int32_t>().begin());
  return Adopt(stream, *std::move(codes));
}

}  // namespace quantd::compute
