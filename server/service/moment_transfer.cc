#include "server/service/moment_transfer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "compute/tensor/checksum.h"
#include "compute/tensor/tensor.h"
#include "server/errors/error.h"
#include "server/service/messages.h"

namespace quantd::server {
namespace {

constexpr int64_t kChunkBytes = int64_t{1} << 20;

absl::Span<const std::byte> AsBytes(absl::string_view data) {
  return {reinterpret_cast<const std::byte*>(data.data()), data.size()};
}

class MomentImport final : public StreamConsumer<v1::ImportStatisticRequest, v1::Statistic> {
 public:
  MomentImport(std::string tenant, Statistics& statistics, const CallEnvironment& environment)
      : tenant_(std::move(tenant)),
        statistics_(statistics),
        metrics_(environment.metrics),
        budget_(environment.imports) {
    metrics_.StreamOpened(Traffic::kMoments);
  }
  ~MomentImport() override {
    budget_.Add(-static_cast<int64_t>(bytes_.size()));
    metrics_.StreamClosed(Traffic::kMoments);
  }

  absl::Status OnMessage(v1::ImportStatisticRequest& request) override {
    if (stored_.has_value()) return InvalidField("message", "expected none after finish");
    switch (request.message_case()) {
      case v1::ImportStatisticRequest::kHeader:
        return OnHeader(request.header());
      case v1::ImportStatisticRequest::kChunk:
        return OnChunk(request.chunk());
      case v1::ImportStatisticRequest::kFinish:
        return OnFinish(request.finish());
      default:
        return InvalidField("message", "expected header, chunk or finish, got none");
    }
  }

  absl::Status OnEnd(v1::Statistic& response) override {
    if (!stored_.has_value()) {
      return InvalidField("finish", "expected header, chunks and finish before the end",
                          "IMPORT_INCOMPLETE");
    }
    response = ToProto(*stored_);
    return absl::OkStatus();
  }

 private:
  absl::Status OnHeader(const v1::StatisticHeader& header) {
    if (header_.has_value()) return InvalidField("header", "expected one header");
    const auto name = ParseStatisticName("header.statistic", header.statistic(), tenant_);
    if (!name.ok()) return name.status();
    if (header.dtype() != v1::F64 && header.dtype() != v1::F32) {
      return InvalidField("header.dtype", "expected F64 or F32");
    }
    if (!v1::MomentNormalization_IsValid(header.normalization())) {
      return InvalidField(
          "header.normalization",
          absl::StrCat("expected SUM or MEAN, got ", static_cast<int>(header.normalization())));
    }
    if (header.tokens() < 1) {
      return InvalidField("header.tokens",
                          absl::StrCat("expected at least 1 token, got ", header.tokens()),
                          "ZERO_TOKENS");
    }
    const auto spec = FromProto(header);
    if (!spec.ok()) return spec.status();
    const int64_t memory = spec->SumElements() * static_cast<int64_t>(sizeof(double));
    if (memory > statistics_.options().max_moment_bytes) {
      return InvalidField(
          "header.cols",
          absl::StrFormat("a moment of %d x %d takes %d bytes, at most %d are allowed",
                          spec->rows(), spec->cols, memory,
                          statistics_.options().max_moment_bytes));
    }
    const bool weighted = spec->kind == compute::MomentKind::kWeighted;
    if (weighted ? !(header.weight_sum() > 0 && std::isfinite(header.weight_sum()))
                 : header.weight_sum() != 0) {
      return InvalidField("header.weight_sum",
                          absl::StrFormat("expected %s for kind %s, got %g",
                                          weighted ? "a finite sum above 0" : "0",
                                          compute::NameOf(spec->kind), header.weight_sum()));
    }
    id_ = name->first;
    spec_ = *spec;
    dtype_ = header.dtype() == v1::F64 ? compute::DType::kF64 : compute::DType::kF32;
    matrix_bytes_ = spec_.SumElements() * static_cast<int64_t>(compute::SizeOf(dtype_));
    size_ = matrix_bytes_ + header.sample_rows() * spec_.cols * 4;
    header_ = header;
    return absl::OkStatus();
  }

  absl::Status OnChunk(const v1::StatisticChunk& chunk) {
    if (!header_.has_value()) return InvalidField("chunk", "expected a header first");
    if (absl::Status s = CheckChunkSize(static_cast<int64_t>(chunk.data().size())); !s.ok())
      return s;
    const int64_t have = static_cast<int64_t>(bytes_.size());
    const int64_t count = static_cast<int64_t>(chunk.data().size());
    if (chunk.offset() != have) {
      return Error(absl::StatusCode::kOutOfRange, "OFFSET_MISMATCH",
                   absl::StrFormat("chunk.offset: expected %d, got %d", have, chunk.offset()));
    }
    if (count == 0 || count > size_ - have) {
      return InvalidField("chunk.data",
                          absl::StrFormat("expected 1..%d more bytes of %d in all, got %d",
                                          size_ - have, size_, count));
    }
    if (compute::Crc32c(AsBytes(chunk.data())) != chunk.crc32c()) {
      return InvalidField("chunk.crc32c", "the data has another CRC-32C", "CRC_MISMATCH");
    }
    if (!budget_.Take(count)) {
      return QuotaExceeded(
          "TOO_MANY_BYTES_IN_FLIGHT", "server",
          absl::StrFormat("imported moments that are not whole yet may take %d bytes together "
                          "(limits.max_inflight_bytes)",
                          budget_.total()),
          absl::Seconds(1));
    }
    metrics_.BytesIn(tenant_, Traffic::kMoments, count);
    bytes_.append(chunk.data());
    return absl::OkStatus();
  }

  absl::Status OnFinish(const v1::StatisticFinish& finish) {
    if (!header_.has_value() || static_cast<int64_t>(bytes_.size()) != size_) {
      return InvalidField(
          "finish",
          absl::StrFormat("expected %d bytes before the end, got %d", size_, bytes_.size()),
          "IMPORT_INCOMPLETE");
    }
    if (finish.sha256().size() != 32) {
      return InvalidField("finish.sha256",
                          absl::StrCat("expected 32 bytes, got ", finish.sha256().size()));
    }
    if (finish.sha256() != compute::ToBytes(compute::Sha256::Of(bytes_))) {
      return Error(absl::StatusCode::kDataLoss, "DIGEST_MISMATCH",
                   "finish.sha256: the received bytes have another SHA-256");
    }
    std::vector<double> matrix(spec_.SumElements());
    compute::ConvertToDouble(dtype_, AsBytes(bytes_).data(), spec_.SumElements(), matrix.data());
    absl::StatusOr<compute::SecondMoment> moment = compute::SecondMoment::FromMatrix(
        spec_, header_->tokens(), header_->normalization() == v1::MEAN, matrix,
        header_->weight_sum());
    if (!moment.ok()) return InvalidField("chunk.data", moment.status());
    if (absl::Status s = AddSample(*moment); !s.ok()) return s;
    moment->AddChunkDigest(AsBytes(bytes_));
    auto stored = statistics_.Import(tenant_, id_, *moment);
    if (!stored.ok()) return stored.status();
    stored_ = std::move(*stored);
    return absl::OkStatus();
  }

  absl::Status AddSample(compute::SecondMoment& moment) const {
    const std::byte* rows = AsBytes(bytes_).data() + matrix_bytes_;
    const int64_t count = header_->sample_rows() * spec_.cols;
    if (const int64_t bad = compute::FindNonFinite(compute::DType::kF32, rows, count); bad >= 0) {
      return InvalidField("chunk.data",
                          absl::StrFormat("expected finite values, got NaN or Inf at row %d, "
                                          "column %d of the sample",
                                          bad / spec_.cols, bad % spec_.cols),
                          "NON_FINITE");
    }
    compute::RowSample& sample = moment.mutable_sample();
    for (int64_t row = 0; row < header_->sample_rows(); ++row) {
      std::vector<float> values(spec_.cols);
      std::memcpy(values.data(), rows + row * spec_.cols * 4, spec_.cols * 4);
      sample.Add(sample.PriorityOf("import", row), std::move(values));
    }
    return absl::OkStatus();
  }

  const std::string tenant_;
  Statistics& statistics_;
  Metrics& metrics_;
  ByteBudget& budget_;  // holds bytes_
  std::optional<v1::StatisticHeader> header_;
  std::string id_;
  compute::MomentSpec spec_;
  compute::DType dtype_ = compute::DType::kF64;
  int64_t matrix_bytes_ = 0;
  int64_t size_ = 0;
  std::string bytes_;  // grows with what arrives, never ahead of it
  std::optional<StatisticRecord> stored_;
};

class MomentExport {
 public:
  MomentExport(ResourceName name, Statistics& statistics, Metrics& metrics)
      : name_(std::move(name)), statistics_(statistics), metrics_(metrics) {}

  absl::StatusOr<bool> Next(v1::ExportStatisticResponse& response) {
    if (!loaded_) return First(response);
    const int64_t size = static_cast<int64_t>(bytes_.size());
    if (offset_ < size) {
      const int64_t count = std::min(kChunkBytes, size - offset_);
      v1::StatisticChunk* chunk = response.mutable_chunk();
      chunk->set_offset(offset_);
      chunk->set_data(bytes_.data() + offset_, count);
      chunk->set_crc32c(compute::Crc32c(absl::string_view(bytes_).substr(offset_, count)));
      metrics_.BytesOut(name_.tenant, Traffic::kMoments, count);
      offset_ += count;
      return true;
    }
    if (finished_) return false;
    finished_ = true;
    response.mutable_finish()->set_sha256(compute::ToBytes(compute::Sha256::Of(bytes_)));
    return true;
  }

 private:
  absl::StatusOr<bool> First(v1::ExportStatisticResponse& response) {
    const auto loaded = statistics_.Load(name_.tenant, name_.first);
    if (!loaded.ok()) return loaded.status();
    const compute::SecondMoment* moment = loaded->get();
    const compute::MomentSpec& spec = moment->spec();
    v1::StatisticHeader* header = response.mutable_header();
    header->set_statistic(StatisticName(name_.tenant, name_.first));
    header->set_kind(ToProto(spec.kind));
    header->set_paired_cols(spec.paired_cols);
    header->set_weight_sum(moment->weight_sum());
    header->set_layout(ToProto(spec.layout));
    header->set_block_size(static_cast<int32_t>(spec.block_size));
    header->set_cols(spec.cols);
    header->set_dtype(v1::F64);
    header->set_normalization(v1::SUM);
    header->set_tokens(moment->tokens());
    header->set_sample_rows(static_cast<int32_t>(moment->sample().size()));
    const absl::Span<const double> sum = moment->sum();
    bytes_.assign(reinterpret_cast<const char*>(sum.data()), sum.size() * sizeof(double));
    for (const auto& row : moment->sample().rows()) {
      bytes_.append(reinterpret_cast<const char*>(row.values.data()),
                    row.values.size() * sizeof(float));
    }
    loaded_ = true;
    return true;
  }

  const ResourceName name_;
  Statistics& statistics_;
  Metrics& metrics_;
  bool loaded_ = false;
  bool finished_ = false;
  int64_t offset_ = 0;
  std::string bytes_;
};

}  // namespace

std::unique_ptr<StreamConsumer<v1::ImportStatisticRequest, v1::Statistic>> NewMomentImport(
    std::string tenant, Statistics& statistics, const CallEnvironment& environment) {
  return std::make_unique<MomentImport>(std::move(tenant), statistics, environment);
}

StreamOut<v1::ExportStatisticResponse>::Next NewMomentExport(const ResourceName& name,
                                                             Statistics& statistics,
                                                             Metrics& metrics) {
  auto state = std::make_shared<MomentExport>(name, statistics, metrics);
  return [state](v1::ExportStatisticResponse& response) { return state->Next(response); };
}

}  // namespace quantd::server
