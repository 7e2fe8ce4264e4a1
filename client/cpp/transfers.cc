// Bulk data other than activations: weights and second moments up, artifacts down.

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/substitute.h"
#include "client/cpp/client.h"
#include "client/cpp/connection.h"
#include "client/cpp/conversion.h"
#include "compute/tensor/checksum.h"

namespace quantd::client {
namespace {

absl::Span<std::byte> AsBytes(std::string& text) {
  return absl::MakeSpan(reinterpret_cast<std::byte*>(text.data()), text.size());
}

// Reads a source for an upload that may jump back, or forth over what an earlier process sent, and
// hashes every byte once.
class HashedSource {
 public:
  HashedSource(ByteSource& source, int64_t chunk_bytes) : source_(source), chunk_(chunk_bytes) {}

  int64_t size() const { return source_.size(); }

  // The bytes from `offset` on, at most a chunk.
  absl::Status Read(int64_t offset, std::string* data) {
    data->resize(static_cast<size_t>(std::min(chunk_, size() - offset)));
    if (absl::Status status = source_.Read(offset, AsBytes(*data)); !status.ok()) return status;
    const int64_t end = offset + static_cast<int64_t>(data->size());
    if (offset <= hashed_ && hashed_ < end) {
      sha256_.Update(absl::string_view(*data).substr(static_cast<size_t>(hashed_ - offset)));
      hashed_ = end;
    }
    return absl::OkStatus();
  }

  // Of all bytes; reads those that no Read has passed.
  absl::StatusOr<std::string> Digest() {
    std::string data;
    while (hashed_ < size()) {
      if (absl::Status status = Read(hashed_, &data); !status.ok()) return status;
    }
    return compute::ToBytes(sha256_.Digest());
  }

  // Makes Read from `offset` continue the digest.
  absl::Status SkipTo(int64_t offset) {
    std::string data;
    while (hashed_ < offset) {
      if (absl::Status status = Read(hashed_, &data); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

 private:
  ByteSource& source_;
  const int64_t chunk_;
  compute::Sha256 sha256_;
  int64_t hashed_ = 0;
};

// Writes [offset, size) as chunks and then the finish message, until the server ends the stream
// early; why it did, the stream's status tells. An error here is the source's.
template <typename Request, typename Stream>
absl::Status WriteChunks(Stream& stream, HashedSource& source, int64_t offset,
                         const ProgressCallback& progress) {
  if (absl::Status status = source.SkipTo(offset); !status.ok()) return status;
  Request request;
  while (offset < source.size()) {
    auto* chunk = request.mutable_chunk();
    chunk->set_offset(offset);
    if (absl::Status status = source.Read(offset, chunk->mutable_data()); !status.ok()) {
      return status;
    }
    chunk->set_crc32c(compute::Crc32c(chunk->data()));
    if (!stream.Write(request)) return absl::OkStatus();
    offset += static_cast<int64_t>(chunk->data().size());
    if (progress) progress(offset, source.size());
  }
  absl::StatusOr<std::string> digest = source.Digest();
  if (!digest.ok()) return digest.status();
  request.mutable_finish()->set_sha256(*std::move(digest));
  stream.Write(request);
  return absl::OkStatus();
}

absl::Status UploadOnce(Connection& connection, const v1::UploadHeader& header,
                        HashedSource& source, int64_t offset, const ProgressCallback& progress) {
  Call call(connection);
  v1::UploadWeightsResponse response;
  const auto stream = connection.weights->UploadWeights(call.context(), &response);
  v1::UploadWeightsRequest request;
  *request.mutable_header() = header;
  absl::Status read;
  if (stream->Write(request)) {
    read = WriteChunks<v1::UploadWeightsRequest>(*stream, source, offset, progress);
  }
  if (!read.ok()) {
    call.context()->TryCancel();
    (void)stream->Finish();
    return read;
  }
  stream->WritesDone();
  absl::Status status = connection.ToStatus(stream->Finish());
  if (status.ok() && !response.status().complete()) {
    return absl::UnavailableError(absl::StrCat("the server ended the upload of ", header.layer(),
                                               " at byte ", response.status().committed_size(),
                                               " of ", source.size()));
  }
  return status;
}

absl::StatusOr<Statistic> ImportOnce(Connection& connection, const v1::StatisticHeader& header,
                                     HashedSource& source, const ProgressCallback& progress) {
  Call call(connection);
  v1::Statistic response;
  const auto stream = connection.calibration->ImportStatistic(call.context(), &response);
  v1::ImportStatisticRequest request;
  *request.mutable_header() = header;
  absl::Status read;
  if (stream->Write(request)) {
    read = WriteChunks<v1::ImportStatisticRequest>(*stream, source, 0, progress);
  }
  if (!read.ok()) {
    call.context()->TryCancel();
    (void)stream->Finish();
    return read;
  }
  stream->WritesDone();
  if (absl::Status status = connection.ToStatus(stream->Finish()); !status.ok()) return status;
  return FromWire(response);
}

absl::Status CheckSize(const ByteSource& source, int64_t rows, int64_t cols, compute::DType dtype) {
  const int64_t expected = rows * cols * static_cast<int64_t>(compute::SizeOf(dtype));
  if (source.size() == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::Substitute("expected $0 bytes ($1 x $2 $3), got $4",
                                                     expected, rows, cols, compute::NameOf(dtype),
                                                     source.size()));
}

// What has arrived of an artifact.
struct Download {
  int64_t offset = 0;
  int64_t size = -1;
  std::string expected_sha256;
  compute::Sha256 sha256;
};

absl::Status Take(const v1::ReadArtifactResponse& response, absl::string_view artifact,
                  const std::function<absl::Status(absl::string_view)>& sink, Download& download) {
  if (!response.sha256().empty()) {
    if (!download.expected_sha256.empty() && download.expected_sha256 != response.sha256()) {
      return absl::DataLossError(absl::StrCat(artifact, " changed while it was read"));
    }
    download.expected_sha256 = response.sha256();
  }
  download.size = response.size_bytes();
  if (response.offset() != download.offset) {
    return absl::InternalError(absl::StrCat(artifact, ": expected bytes from offset ",
                                            download.offset, ", got ", response.offset()));
  }
  if (compute::Crc32c(response.data()) != response.crc32c()) {
    return absl::DataLossError(absl::StrCat(artifact, ": the CRC of the bytes from offset ",
                                            download.offset, " is wrong"));
  }
  download.sha256.Update(response.data());
  if (absl::Status status = sink(response.data()); !status.ok()) return status;
  download.offset += static_cast<int64_t>(response.data().size());
  return absl::OkStatus();
}

compute::DType MomentDType(v1::DType dtype) {
  return dtype == v1::F32 ? compute::DType::kF32 : compute::DType::kF64;
}

// Bytes that the header announces: matrix and sample. Dimensions come from the server.
absl::StatusOr<int64_t> AnnouncedBytes(const ExportedMoment& moment) {
  constexpr int64_t kMost = int64_t{1} << 20;  // as the server's
  const MomentSpec& spec = moment.spec;
  const bool fits = spec.cols >= 1 && spec.cols <= kMost && spec.paired_cols >= 0 &&
                    spec.paired_cols <= kMost && moment.block_size >= 0 &&
                    moment.block_size <= spec.cols && moment.sample_rows >= 0 &&
                    moment.sample_rows <= kMost;
  if (!fits) return absl::DataLossError(absl::StrCat(spec.statistic, ": malformed header"));
  const int64_t height = moment.layout == MomentLayout::kFull ? spec.rows() : moment.block_size;
  return height * spec.cols * static_cast<int64_t>(compute::SizeOf(spec.dtype)) +
         moment.sample_rows * spec.cols * static_cast<int64_t>(sizeof(float));
}

ExportedMoment FromHeader(const v1::StatisticHeader& header) {
  ExportedMoment moment;
  moment.spec = {.statistic = header.statistic(),
                 .kind = static_cast<StatisticKind>(header.kind()),
                 .cols = header.cols(),
                 .paired_cols = header.paired_cols(),
                 .dtype = MomentDType(header.dtype()),
                 .mean = header.normalization() == v1::MEAN,
                 .tokens = header.tokens(),
                 .weight_sum = header.weight_sum()};
  moment.layout =
      header.layout() == v1::BLOCK_DIAGONAL ? MomentLayout::kBlockDiagonal : MomentLayout::kFull;
  moment.block_size = header.block_size();
  moment.sample_rows = header.sample_rows();
  return moment;
}

absl::StatusOr<ExportedMoment> ExportOnce(Connection& connection, const std::string& name,
                                          const ProgressCallback& progress) {
  Call call(connection);
  v1::ExportStatisticRequest request;
  request.set_name(name);
  const auto stream = connection.calibration->ExportStatistic(call.context(), request);
  ExportedMoment moment;
  absl::StatusOr<int64_t> size = absl::DataLossError(absl::StrCat(name, ": nothing came"));
  std::string bytes;
  std::string sha256;
  v1::ExportStatisticResponse response;
  const auto take = [&]() -> absl::Status {
    if (response.has_header()) {
      moment = FromHeader(response.header());
      size = AnnouncedBytes(moment);
      return size.status();
    }
    if (response.has_finish()) {
      sha256 = response.finish().sha256();
      return absl::OkStatus();
    }
    if (!size.ok()) return size.status();
    const v1::StatisticChunk& chunk = response.chunk();
    const auto have = static_cast<int64_t>(bytes.size());
    if (chunk.offset() != have || compute::Crc32c(chunk.data()) != chunk.crc32c() ||
        static_cast<int64_t>(chunk.data().size()) > *size - have) {
      return absl::DataLossError(absl::StrCat(name, ": corrupt chunk at offset ", chunk.offset()));
    }
    bytes += chunk.data();
    if (progress) progress(have + static_cast<int64_t>(chunk.data().size()), *size);
    return absl::OkStatus();
  };
  while (stream->Read(&response)) {
    if (absl::Status status = take(); !status.ok()) {
      call.context()->TryCancel();
      (void)stream->Finish();
      return status;
    }
  }
  if (absl::Status status = connection.ToStatus(stream->Finish()); !status.ok()) return status;
  if (!size.ok()) return size.status();
  if (static_cast<int64_t>(bytes.size()) != *size ||
      sha256 != compute::ToBytes(compute::Sha256::Of(bytes))) {
    return absl::DataLossError(absl::StrCat(name, ": the bytes do not match their digest"));
  }
  const int64_t sample = moment.sample_rows * moment.spec.cols * 4;
  moment.sample = bytes.substr(static_cast<size_t>(*size - sample));
  bytes.resize(static_cast<size_t>(*size - sample));
  moment.matrix = std::move(bytes);
  return moment;
}

}  // namespace

absl::Status Client::UploadWeights(const Layer& layer, ByteSource& weights,
                                   const ProgressCallback& progress) {
  if (absl::Status status = CheckSize(weights, layer.rows, layer.cols, layer.dtype); !status.ok()) {
    return status;
  }
  const absl::StatusOr<v1::DType> dtype = ToWire(layer.dtype);
  if (!dtype.ok()) return dtype.status();
  v1::UploadHeader header;
  header.set_layer(layer.name);
  header.set_dtype(*dtype);
  header.set_rows(layer.rows);
  header.set_cols(layer.cols);

  HashedSource source(weights, connection_->ChunkBytes());
  Backoff backoff(connection_->options().retry_for);
  int64_t furthest = 0;
  for (bool first = true;; first = false) {
    const absl::StatusOr<UploadStatus> before = GetUploadStatus(layer.name);
    if (!before.ok()) return before.status();
    if (before->complete) return absl::OkStatus();
    if (before->committed_size > furthest) {
      furthest = before->committed_size;
      backoff.Reset();
    }
    absl::Status status =
        UploadOnce(*connection_, header, source, before->committed_size, progress);
    if (status.ok()) return status;
    // Until the server notices that our broken stream is gone, it counts as another writer.
    if (!first && absl::IsAborted(status)) status = absl::UnavailableError(status.message());
    if (absl::Status stop = connection_->WaitToRetry(status, backoff); !stop.ok()) return stop;
  }
}

absl::StatusOr<Statistic> Client::ImportStatistic(const MomentSpec& spec, ByteSource& moment,
                                                  const ProgressCallback& progress) {
  if (absl::Status status = CheckSize(moment, spec.rows(), spec.cols, spec.dtype); !status.ok()) {
    return status;
  }
  const absl::StatusOr<v1::DType> dtype = ToWire(spec.dtype);
  if (!dtype.ok()) return dtype.status();
  v1::StatisticHeader header;
  header.set_statistic(StatisticName(spec.statistic));
  header.set_layout(v1::FULL);
  header.set_cols(spec.cols);
  header.set_dtype(*dtype);
  header.set_normalization(spec.mean ? v1::MEAN : v1::SUM);
  header.set_tokens(spec.tokens);
  header.set_kind(static_cast<v1::StatisticKind>(spec.kind));
  header.set_paired_cols(spec.paired_cols);
  header.set_weight_sum(spec.weight_sum);

  HashedSource source(moment, connection_->ChunkBytes());
  Backoff backoff(connection_->options().retry_for);
  for (bool first = true;; first = false) {
    absl::StatusOr<Statistic> statistic = ImportOnce(*connection_, header, source, progress);
    if (statistic.ok()) return statistic;
    if (!first && (absl::IsAlreadyExists(statistic.status()) ||
                   absl::IsFailedPrecondition(statistic.status()))) {
      // An earlier attempt went through and only its answer was lost.
      absl::StatusOr<Statistic> stored = GetStatistic(spec.statistic);
      if (stored.ok() && stored->state == StatisticState::kSealed && stored->cols == spec.cols &&
          stored->tokens == spec.tokens) {
        return stored;
      }
    }
    if (absl::Status stop = connection_->WaitToRetry(statistic.status(), backoff); !stop.ok()) {
      return stop;
    }
  }
}

absl::StatusOr<ExportedMoment> Client::ExportStatistic(absl::string_view statistic,
                                                       const ProgressCallback& progress) {
  const std::string name = StatisticName(statistic);
  Backoff backoff(connection_->options().retry_for);
  while (true) {
    absl::StatusOr<ExportedMoment> moment = ExportOnce(*connection_, name, progress);
    if (moment.ok()) return moment;
    if (absl::Status stop = connection_->WaitToRetry(moment.status(), backoff); !stop.ok()) {
      return stop;
    }
  }
}

absl::Status Client::ReadArtifact(absl::string_view artifact,
                                  const std::function<absl::Status(absl::string_view)>& sink,
                                  const ProgressCallback& progress) {
  Download download;
  Backoff backoff(connection_->options().retry_for);
  while (true) {
    v1::ReadArtifactRequest request;
    request.set_name(std::string(artifact));
    request.set_read_offset(download.offset);
    Call call(*connection_);
    const auto stream = connection_->results->ReadArtifact(call.context(), request);
    v1::ReadArtifactResponse response;
    while (stream->Read(&response)) {
      if (absl::Status status = Take(response, artifact, sink, download); !status.ok()) {
        call.context()->TryCancel();
        (void)stream->Finish();
        return status;
      }
      backoff.Reset();
      if (progress) progress(download.offset, download.size);
    }
    absl::Status status = connection_->ToStatus(stream->Finish());
    if (download.offset == download.size) break;
    if (status.ok()) {
      status = absl::UnavailableError(absl::StrCat("the server ended ", artifact, " at byte ",
                                                   download.offset, " of ", download.size));
    }
    if (absl::Status stop = connection_->WaitToRetry(status, backoff); !stop.ok()) return stop;
  }
  if (compute::ToBytes(download.sha256.Digest()) != download.expected_sha256) {
    return absl::DataLossError(absl::StrCat(artifact, ": the SHA-256 of what came is wrong"));
  }
  return absl::OkStatus();
}

absl::Status Client::DownloadArtifact(absl::string_view artifact, const std::string& path,
                                      const ProgressCallback& progress) {
  const std::string partial = path + ".part";
  std::FILE* file = std::fopen(partial.c_str(), "wb");
  if (file == nullptr) return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", partial));
  absl::Status status = ReadArtifact(
      artifact,
      [&](absl::string_view data) {
        if (std::fwrite(data.data(), 1, data.size(), file) == data.size()) return absl::OkStatus();
        return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", partial));
      },
      progress);
  if (std::fclose(file) != 0 && status.ok()) {
    status = absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", partial));
  }
  if (status.ok() && std::rename(partial.c_str(), path.c_str()) != 0) {
    status = absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", path));
  }
  if (!status.ok()) std::remove(partial.c_str());
  return status;
}

}  // namespace quantd::client
