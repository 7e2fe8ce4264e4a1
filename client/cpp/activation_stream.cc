#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cpp/activation_window.h"
#include "client/cpp/client.h"
#include "client/cpp/connection.h"
#include "client/cpp/conversion.h"
#include "client/cpp/shared_region.h"

namespace quantd::client {
namespace {

using Stream =
    grpc::ClientReaderWriter<v1::StreamActivationsRequest, v1::StreamActivationsResponse>;

// One gRPC stream and the thread that reads its acknowledgements into the window. A stream that
// broke is thrown away; the window outlives it.
class Session {
 public:
  Session(Connection& connection, ActivationWindow& window, std::mutex& mutex,
          std::condition_variable& changed)
      : call_(connection), window_(window), mutex_(mutex), changed_(changed) {}

  ~Session() {
    call_.context()->TryCancel();
    if (reader_.joinable()) reader_.join();
  }

  // Sends the header and waits for its answer. False: the stream has ended.
  bool Open(Connection& connection, const v1::ActivationHeader& header, absl::Status* problem) {
    stream_ = connection.calibration->StreamActivations(call_.context());
    v1::StreamActivationsRequest request;
    *request.mutable_header() = header;
    v1::StreamActivationsResponse answer;
    if (!stream_->Write(request) || !stream_->Read(&answer)) {
      ended_ = true;
      return false;
    }
    {
      const std::lock_guard lock(mutex_);
      *problem = window_.Restart(answer.durable_seq(), answer.credit_bytes());
    }
    reader_ = std::thread([this] { ReadAcknowledgements(); });
    return true;
  }

  bool Write(const v1::StreamActivationsRequest& request) { return stream_->Write(request); }
  void WritesDone() { stream_->WritesDone(); }

  bool ended() const { return ended_; }  // under the mutex
  // What the server acknowledged against the rules; under the mutex.
  const absl::Status& violation() const { return violation_; }

  absl::Status Finish(const Connection& connection) {
    if (reader_.joinable()) reader_.join();
    return connection.ToStatus(stream_->Finish());
  }

 private:
  void ReadAcknowledgements() {
    v1::StreamActivationsResponse response;
    while (stream_->Read(&response)) {
      const std::lock_guard lock(mutex_);
      violation_.Update(window_.Acknowledge(response.received_seq(), response.durable_seq(),
                                            response.credit_bytes()));
      changed_.notify_all();
    }
    const std::lock_guard lock(mutex_);
    ended_ = true;
    changed_.notify_all();
  }

  Call call_;
  ActivationWindow& window_;
  std::mutex& mutex_;
  std::condition_variable& changed_;
  std::unique_ptr<Stream> stream_;
  std::thread reader_;
  bool ended_ = false;
  absl::Status violation_;
};

class ResumingStream final : public ActivationStream {
 public:
  ResumingStream(std::shared_ptr<Connection> connection, v1::ActivationHeader header,
                 bool shared_memory)
      : connection_(std::move(connection)),
        header_(std::move(header)),
        shared_memory_(shared_memory),
        window_(connection_->options().keep_bytes),
        backoff_(connection_->options().retry_for) {}

  absl::Status Open() {
    first_ = true;
    return Reconnect(absl::OkStatus());
  }

  int64_t next_seq() const override {
    const std::lock_guard lock(mutex_);
    return window_.next_seq();
  }
  int64_t max_chunk_bytes() const override { return connection_->ChunkBytes(); }
  int64_t durable_seq() const override {
    const std::lock_guard lock(mutex_);
    return window_.durable_seq();
  }
  int64_t received_seq() const override {
    const std::lock_guard lock(mutex_);
    return window_.received_seq();
  }

  using ActivationStream::Send;
  absl::Status Send(ActivationRows rows) override {
    const int64_t bytes = rows.bytes();
    if (bytes > max_chunk_bytes()) {
      return absl::InvalidArgumentError(
          absl::StrCat("chunk of ", bytes, " bytes: expected at most ", max_chunk_bytes()));
    }
    absl::Status status = RunUntil([&] { return window_.HasRoom(bytes); }, /*flush=*/true);
    if (!status.ok()) return status;
    {
      const std::lock_guard lock(mutex_);
      window_.Add(std::move(rows));
    }
    // Sends what the credit allows; the rest leaves with later calls.
    return RunUntil([] { return true; }, /*flush=*/false);
  }

  absl::Status Flush() override {
    return RunUntil([&] { return window_.AllDurable(); }, /*flush=*/true);
  }

  absl::Status Close() override {
    while (true) {
      absl::Status status = RunUntil([&] { return window_.AllSent(); }, /*flush=*/false);
      if (!status.ok()) return status;
      session_->WritesDone();
      status = session_->Finish(*connection_);
      {
        const std::lock_guard lock(mutex_);
        if (!session_->violation().ok()) return session_->violation();
        if (status.ok() && window_.AllDurable()) return status;
      }
      if (status.ok()) status = absl::UnavailableError("the server ended the stream too early");
      if (status = Reconnect(status); !status.ok()) return status;
    }
  }

 private:
  // Sends whatever the credit allows and takes acknowledgements, through as many connections as it
  // takes, until there is nothing left to send now and `done` holds. `flush` asks the server to
  // make durable what it has instead of waiting for its own reasons.
  template <typename Done>
  absl::Status RunUntil(Done done, bool flush) {
    bool flushed = false;
    while (true) {
      bool healthy = true;
      v1::StreamActivationsRequest request;
      {
        std::unique_lock lock(mutex_);
        const ActivationChunk* next = nullptr;
        const bool may_flush = flush && !flushed;
        changed_.wait(lock, [&] {
          if (session_->ended() || !session_->violation().ok()) return true;
          next = NextToSend();
          return next != nullptr || done() || (may_flush && window_.AllSent());
        });
        if (!session_->violation().ok()) return session_->violation();
        healthy = !session_->ended();
        NoteProgress();
        if (healthy && next == nullptr && done()) return absl::OkStatus();
        if (healthy && next != nullptr) {
          if (absl::Status status = FillChunk(*next, request); !status.ok()) return status;
          window_.MarkSent();
        } else if (healthy) {
          request.mutable_flush();
          flushed = true;
        }
      }
      if (healthy && session_->Write(request)) continue;
      flushed = false;
      if (absl::Status status = Reconnect(session_->Finish(*connection_)); !status.ok()) {
        return status;
      }
    }
  }

  // The window's, once it finds a slot of shared memory free. Under the mutex.
  const ActivationChunk* NextToSend() const {
    const ActivationChunk* next = window_.NextToSend();
    const bool waits =
        next != nullptr && region_ != nullptr && next->seq - window_.received_seq() > kSharedSlots;
    return waits ? nullptr : next;
  }

  absl::Status FillChunk(const ActivationChunk& chunk, v1::StreamActivationsRequest& request) {
    v1::ActivationChunk* wire = request.mutable_chunk();
    wire->set_seq(chunk.seq);
    const ActivationRows& tokens = chunk.tokens;
    wire->set_rows(tokens.rows);
    wire->set_crc32c(chunk.crc32c);
    wire->mutable_token_weights()->Add(tokens.weights.begin(), tokens.weights.end());
    if (!tokens.paired.empty()) wire->set_paired_crc32c(chunk.paired_crc32c);
    if (region_ == nullptr) {
      wire->set_data(tokens.data);
      wire->set_paired_data(tokens.paired);
      return absl::OkStatus();
    }
    // Chunks in flight have successive numbers and are no more than there are slots.
    const int64_t offset = chunk.seq % kSharedSlots * max_chunk_bytes();
    absl::Status status = Share(offset, tokens.data, *wire->mutable_shared());
    if (!status.ok() || tokens.paired.empty()) return status;
    return Share(offset + wire->shared().bytes(), tokens.paired, *wire->mutable_paired_shared());
  }

  absl::Status Share(int64_t offset, const std::string& bytes, v1::SharedRange& range) {
    range.set_offset(offset);
    range.set_bytes(static_cast<int64_t>(bytes.size()));
    return region_->Write(offset, bytes);
  }

  // Under the mutex: what became durable shows that trying again is not in vain.
  void NoteProgress() {
    if (window_.durable_seq() == last_durable_) return;
    last_durable_ = window_.durable_seq();
    backoff_.Reset();
  }

  // Connects anew after `failure`, or for the first time.
  absl::Status Reconnect(absl::Status failure) {
    while (true) {
      if (!first_) {
        if (failure.ok()) failure = absl::UnavailableError("the server ended the stream");
        // Until the server notices that our broken stream is gone, it counts as another writer.
        if (absl::IsAborted(failure) && broke_) failure = absl::UnavailableError(failure.message());
        if (absl::Status stop = connection_->WaitToRetry(failure, backoff_); !stop.ok()) {
          return stop;
        }
        broke_ = true;
      }
      first_ = false;
      session_.reset();
      session_ = std::make_unique<Session>(*connection_, window_, mutex_, changed_);
      if (absl::Status shared = RenewRegion(); !shared.ok()) return shared;
      absl::Status problem;
      if (session_->Open(*connection_, header_, &problem)) {
        if (region_ != nullptr) region_->Unlink();  // the server has it open
        return problem;
      }
      failure = session_->Finish(*connection_);
    }
  }

  // Every connection has its own, so that it shares no slot with one that is lost.
  absl::Status RenewRegion() {
    if (!shared_memory_) return absl::OkStatus();
    region_.reset();
    const std::vector<std::string> statistic = absl::StrSplit(header_.statistic(), '/');
    auto region = SharedRegion::Create(statistic.size() > 1 ? statistic[1] : "",
                                       kSharedSlots * max_chunk_bytes());
    if (!region.ok()) return region.status();
    region_ = *std::move(region);
    header_.set_shared_region(region_->name());
    return absl::OkStatus();
  }

  // As many chunks of the usual size as the server's usual credit allows.
  static constexpr int64_t kSharedSlots = 16;

  const std::shared_ptr<Connection> connection_;
  v1::ActivationHeader header_;
  const bool shared_memory_;
  std::unique_ptr<SharedRegion> region_;  // null: chunks come with their bytes
  mutable std::mutex mutex_;              // of window_ and of what sessions share
  std::condition_variable changed_;
  ActivationWindow window_;
  Backoff backoff_;
  int64_t last_durable_ = 0;
  bool first_ = true;
  bool broke_ = false;  // a stream of ours broke before
  std::unique_ptr<Session> session_;
};

absl::StatusOr<v1::ActivationHeader> Header(const ActivationStreamSpec& spec,
                                            std::string statistic) {
  const absl::StatusOr<v1::DType> dtype = ToWire(spec.dtype);
  if (!dtype.ok()) return dtype.status();
  v1::ActivationHeader header;
  header.set_statistic(std::move(statistic));
  header.set_stream_id(spec.stream_id);
  header.set_dtype(*dtype);
  header.set_cols(spec.cols);
  header.set_kind(static_cast<v1::StatisticKind>(spec.kind));
  header.set_paired_cols(spec.paired_cols);
  const bool full = spec.layout == MomentLayout::kFull;
  header.set_layout(full ? v1::FULL : v1::BLOCK_DIAGONAL);
  if (!full) header.set_block_size(static_cast<int32_t>(spec.block_size));
  if (spec.sample_rows) header.set_sample_rows(static_cast<int32_t>(*spec.sample_rows));
  header.set_sample_seed(spec.sample_seed);
  return header;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ActivationStream>> Client::OpenActivationStream(
    const ActivationStreamSpec& spec) {
  absl::StatusOr<v1::ActivationHeader> header = Header(spec, StatisticName(spec.statistic));
  if (!header.ok()) return header.status();
  if (spec.shared_memory) {
    absl::Status status = CheckSameHost(connection_->options().address);
    if (!status.ok()) return status;
  }
  auto stream =
      std::make_unique<ResumingStream>(connection_, *std::move(header), spec.shared_memory);
  if (absl::Status status = stream->Open(); !status.ok()) return status;
  return stream;
}

namespace {

// One of the matrices whose rows go into a stream.
struct Part {
  absl::string_view name;
  ByteSource* source;
  int64_t row_bytes;
};

// The parts that belong to `spec`, all of as many rows.
absl::StatusOr<std::vector<Part>> PartsOf(const ActivationStreamSpec& spec,
                                          const ActivationSources& sources) {
  const auto element = static_cast<int64_t>(compute::SizeOf(spec.dtype));
  std::vector<Part> parts = {{"activations", sources.data, spec.cols * element}};
  if (spec.kind == StatisticKind::kWeighted) {
    parts.push_back({"token weights", sources.weights, sizeof(float)});
  }
  if (spec.paired_cols > 0) {
    parts.push_back({"paired data", sources.paired, spec.paired_cols * element});
  }
  int64_t tokens = -1;
  for (const Part& part : parts) {
    if (part.source == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat(part.name, ": expected for ", NameOf(spec.kind), ", got none"));
    }
    if (part.row_bytes <= 0 || part.source->size() % part.row_bytes != 0) {
      return absl::InvalidArgumentError(absl::StrCat(part.name, ": expected whole rows of ",
                                                     part.row_bytes, " bytes, got ",
                                                     part.source->size(), " bytes"));
    }
    const int64_t rows = part.source->size() / part.row_bytes;
    if (tokens < 0) tokens = rows;
    if (rows != tokens) {
      return absl::InvalidArgumentError(absl::StrCat(part.name, ": expected ", tokens,
                                                     " rows, as the activations have, got ", rows));
    }
  }
  return parts;
}

absl::StatusOr<std::string> ReadRows(const Part& part, int64_t first, int64_t rows) {
  std::string data(static_cast<size_t>(rows * part.row_bytes), '\0');
  const auto bytes = absl::MakeSpan(reinterpret_cast<std::byte*>(data.data()), data.size());
  absl::Status status = part.source->Read(first * part.row_bytes, bytes);
  if (!status.ok()) return status;
  return data;
}

absl::StatusOr<ActivationRows> ReadTokens(const std::vector<Part>& parts, int64_t first,
                                          int64_t rows) {
  ActivationRows tokens;
  tokens.rows = rows;
  for (const Part& part : parts) {
    absl::StatusOr<std::string> data = ReadRows(part, first, rows);
    if (!data.ok()) return data.status();
    if (part.name == "activations") {
      tokens.data = *std::move(data);
    } else if (part.name == "paired data") {
      tokens.paired = *std::move(data);
    } else {
      tokens.weights.resize(static_cast<size_t>(rows));
      std::memcpy(tokens.weights.data(), data->data(), data->size());
    }
  }
  return tokens;
}

}  // namespace

absl::Status Client::StreamActivations(const ActivationStreamSpec& spec, ByteSource& activations,
                                       const ProgressCallback& progress) {
  return StreamActivations(spec, {.data = &activations}, progress);
}

absl::Status Client::StreamActivations(const ActivationStreamSpec& spec,
                                       const ActivationSources& sources,
                                       const ProgressCallback& progress) {
  const absl::StatusOr<std::vector<Part>> parts = PartsOf(spec, sources);
  if (!parts.ok()) return parts.status();
  int64_t row_bytes = 0;
  for (const Part& part : *parts) row_bytes += part.row_bytes;
  const int64_t tokens = sources.data->size() / parts->front().row_bytes;
  auto stream = OpenActivationStream(spec);
  if (!stream.ok()) return stream.status();
  const int64_t rows_per_chunk = (*stream)->max_chunk_bytes() / row_bytes;
  if (rows_per_chunk == 0) {
    return absl::InvalidArgumentError(absl::StrCat("activations: one row has ", row_bytes,
                                                   " bytes and the server takes at most ",
                                                   (*stream)->max_chunk_bytes(), " at once"));
  }
  const auto report = [&](int64_t seq) {
    if (progress) progress(std::min(tokens, seq * rows_per_chunk) * row_bytes, tokens * row_bytes);
  };
  for (int64_t seq = (*stream)->next_seq(); (seq - 1) * rows_per_chunk < tokens; ++seq) {
    const int64_t first = (seq - 1) * rows_per_chunk;
    absl::StatusOr<ActivationRows> rows =
        ReadTokens(*parts, first, std::min(rows_per_chunk, tokens - first));
    if (!rows.ok()) return rows.status();
    if (absl::Status status = (*stream)->Send(*std::move(rows)); !status.ok()) return status;
    report((*stream)->received_seq());
  }
  if (absl::Status status = (*stream)->Close(); !status.ok()) return status;
  report((*stream)->durable_seq());
  return absl::OkStatus();
}

}  // namespace quantd::client
