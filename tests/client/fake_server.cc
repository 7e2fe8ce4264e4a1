#include "tests/client/fake_server.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "compute/tensor/checksum.h"
#include "google/rpc/status.pb.h"

namespace quantd::client {
namespace {

using compute::Crc32c;
using compute::Sha256;
using grpc::ServerContext;
using grpc::Status;
using grpc::StatusCode;

Status Broken() { return Status(StatusCode::UNAVAILABLE, "scripted fault"); }

// The next entry of a script, or -1.
int TakeFault(std::deque<int>& script) {
  if (script.empty()) return -1;
  const int fault = script.front();
  script.pop_front();
  return fault;
}

Status TakeStatus(std::deque<Status>& script) {
  if (script.empty()) return Status::OK;
  Status status = script.front();
  script.pop_front();
  return status;
}

class FakeServerInfo final : public v1::Server::Service {
 public:
  explicit FakeServerInfo(std::shared_ptr<FakeState> state) : state_(std::move(state)) {}
  Status GetServerInfo(ServerContext* context, const v1::GetServerInfoRequest*,
                       v1::ServerInfo* response) override {
    const std::lock_guard lock(state_->mutex);
    if (!state_->expected_authorization.empty()) {
      const auto found = context->client_metadata().find("authorization");
      if (found == context->client_metadata().end() ||
          std::string(found->second.data(), found->second.size()) !=
              state_->expected_authorization) {
        return Status(StatusCode::UNAUTHENTICATED, "token expected");
      }
    }
    *response = state_->info;
    return Status::OK;
  }

 private:
  const std::shared_ptr<FakeState> state_;
};

class FakeWeights final : public v1::Weights::Service {
 public:
  explicit FakeWeights(std::shared_ptr<FakeState> state) : state_(std::move(state)) {}

  Status UploadWeights(ServerContext*, grpc::ServerReader<v1::UploadWeightsRequest>* reader,
                       v1::UploadWeightsResponse* response) override {
    v1::UploadWeightsRequest request;
    if (!reader->Read(&request) || !request.has_header()) return Missing("header");
    int fault;
    {
      const std::lock_guard lock(state_->mutex);
      if (!state_->upload_refusal.ok()) return state_->upload_refusal;
      fault = TakeFault(state_->upload_faults);
    }
    for (int chunks = 0; reader->Read(&request); ++chunks) {
      const std::lock_guard lock(state_->mutex);
      if (chunks == fault) return Broken();
      if (request.has_finish()) return Finish(request.finish(), response);
      if (Status status = Append(request.chunk(), chunks == 0); !status.ok()) return status;
    }
    return Status::OK;
  }

  Status GetUploadStatus(ServerContext*, const v1::GetUploadStatusRequest*,
                         v1::UploadStatus* response) override {
    const std::lock_guard lock(state_->mutex);
    Fill(response);
    return Status::OK;
  }

 private:
  static Status Missing(const char* what) { return Status(StatusCode::INVALID_ARGUMENT, what); }

  Status Append(const v1::UploadChunk& chunk, bool first) {
    if (first) state_->upload_first_offsets.push_back(chunk.offset());
    if (chunk.offset() != static_cast<int64_t>(state_->uploaded.size())) {
      return Status(StatusCode::OUT_OF_RANGE, "offset");
    }
    if (Crc32c(chunk.data()) != chunk.crc32c()) return Missing("crc32c");
    state_->uploaded += chunk.data();
    return Status::OK;
  }

  Status Finish(const v1::UploadFinish& finish, v1::UploadWeightsResponse* response) {
    if (compute::ToBytes(Sha256::Of(state_->uploaded)) != finish.sha256()) {
      return Status(StatusCode::DATA_LOSS, "sha256");
    }
    state_->upload_complete = true;
    Fill(response->mutable_status());
    return Status::OK;
  }

  void Fill(v1::UploadStatus* status) {
    status->set_committed_size(static_cast<int64_t>(state_->uploaded.size()));
    status->set_size(state_->upload_size);
    status->set_complete(state_->upload_complete);
  }

  const std::shared_ptr<FakeState> state_;
};

class FakeCalibration final : public v1::Calibration::Service {
 public:
  explicit FakeCalibration(std::shared_ptr<FakeState> state) : state_(std::move(state)) {}

  using Stream =
      grpc::ServerReaderWriter<v1::StreamActivationsResponse, v1::StreamActivationsRequest>;

  Status StreamActivations(ServerContext*, Stream* stream) override {
    v1::StreamActivationsRequest request;
    if (!stream->Read(&request) || !request.has_header()) {
      return Status(StatusCode::INVALID_ARGUMENT, "header");
    }
    Session session;
    int fault;
    {
      const std::lock_guard lock(state_->mutex);
      if (Status refusal = TakeStatus(state_->activation_refusals); !refusal.ok()) return refusal;
      fault = TakeFault(state_->activation_faults);
      session.received = DurableSeq();
      state_->received_seqs.emplace_back();
    }
    Acknowledge(stream, session);
    for (int chunks = 0; stream->Read(&request);) {
      if (request.has_flush()) {
        {
          const std::lock_guard lock(state_->mutex);
          ++state_->flushes;
          Commit(session);
        }
        Acknowledge(stream, session);
        continue;
      }
      if (chunks++ == fault) return Broken();
      {
        const std::lock_guard lock(state_->mutex);
        if (Status status = Receive(request.chunk(), session); !status.ok()) return status;
        if (session.received_since_ack < state_->chunks_per_ack) continue;
        if (state_->durable_on_ack) Commit(session);
      }
      Acknowledge(stream, session);
    }
    {
      const std::lock_guard lock(state_->mutex);
      Commit(session);
    }
    Acknowledge(stream, session);
    return Status::OK;
  }

  Status ImportStatistic(ServerContext*, grpc::ServerReader<v1::ImportStatisticRequest>* reader,
                         v1::Statistic* response) override {
    v1::ImportStatisticRequest request;
    std::string bytes;
    v1::StatisticHeader header;
    while (reader->Read(&request)) {
      if (request.has_header()) header = request.header();
      if (request.has_chunk()) {
        if (request.chunk().offset() != static_cast<int64_t>(bytes.size())) {
          return Status(StatusCode::OUT_OF_RANGE, "offset");
        }
        bytes += request.chunk().data();
      }
      if (!request.has_finish()) continue;
      if (compute::ToBytes(Sha256::Of(bytes)) != request.finish().sha256()) {
        return Status(StatusCode::DATA_LOSS, "sha256");
      }
      const std::lock_guard lock(state_->mutex);
      if (!state_->imported.empty()) return Status(StatusCode::ALREADY_EXISTS, "exists");
      state_->imported = bytes;
      state_->imported_header = header;
      if (state_->import_faults_after_commit-- > 0) return Broken();
      FillImported(response);
      return Status::OK;
    }
    return Status(StatusCode::INVALID_ARGUMENT, "no finish");
  }

  Status ExportStatistic(ServerContext*, const v1::ExportStatisticRequest*,
                         grpc::ServerWriter<v1::ExportStatisticResponse>* writer) override {
    using Fault = FakeState::ExportFault;
    const std::lock_guard lock(state_->mutex);
    Fault fault = Fault::kNone;
    if (!state_->export_faults.empty()) {
      fault = state_->export_faults.front();
      state_->export_faults.pop_front();
    }
    v1::ExportStatisticResponse response;
    *response.mutable_header() = state_->imported_header;
    if (fault == Fault::kHostileHeader) response.mutable_header()->set_cols(int64_t{1} << 62);
    writer->Write(response);
    const std::string& bytes = state_->imported;
    const size_t end = fault == Fault::kCutShort ? bytes.size() - 8 : bytes.size();
    for (size_t offset = 0; offset < end; offset += 100) {
      v1::StatisticChunk* chunk = response.mutable_chunk();
      chunk->set_offset(static_cast<int64_t>(offset));
      chunk->set_data(bytes.substr(offset, std::min<size_t>(100, end - offset)));
      chunk->set_crc32c(Crc32c(chunk->data()) ^ (fault == Fault::kWrongCrc ? 1 : 0));
      writer->Write(response);
      if (fault == Fault::kBreaks && offset >= 300) return Broken();
    }
    response.mutable_finish()->set_sha256(
        compute::ToBytes(Sha256::Of(fault == Fault::kWrongDigest ? "other" : bytes)));
    writer->Write(response);
    return Status::OK;
  }

  Status MergeStatistics(ServerContext*, const v1::MergeStatisticsRequest* request,
                         v1::Statistic* response) override {
    const std::lock_guard lock(state_->mutex);
    response->set_name(request->parent() + "/statistics/" + request->statistic_id());
    return TakeStatus(state_->merge_results);
  }

  Status GetStatistic(ServerContext*, const v1::GetStatisticRequest*,
                      v1::Statistic* response) override {
    const std::lock_guard lock(state_->mutex);
    FillImported(response);
    return Status::OK;
  }

 private:
  struct Session {
    std::map<int64_t, std::string> pending;  // received, not durable
    int64_t received = 0;
    int64_t received_since_ack = 0;
    int64_t bytes_since_ack = 0;
  };

  int64_t DurableSeq() const {
    return state_->durable.empty() ? 0 : state_->durable.rbegin()->first;
  }

  Status Receive(const v1::ActivationChunk& chunk, Session& session) {
    if (chunk.seq() != session.received + 1) {
      return Status(StatusCode::OUT_OF_RANGE, "expected seq " +
                                                  std::to_string(session.received + 1) + ", got " +
                                                  std::to_string(chunk.seq()));
    }
    if (Crc32c(chunk.data()) != chunk.crc32c()) {
      return Status(StatusCode::INVALID_ARGUMENT, "crc32c");
    }
    if (Crc32c(chunk.paired_data()) != chunk.paired_crc32c()) {
      return Status(StatusCode::INVALID_ARGUMENT, "paired_crc32c");
    }
    state_->paired += chunk.paired_data();
    state_->received_seqs.back().push_back(chunk.seq());
    session.received = chunk.seq();
    session.pending[chunk.seq()] = chunk.data();
    ++session.received_since_ack;
    session.bytes_since_ack += static_cast<int64_t>(chunk.data().size());
    state_->largest_unacknowledged =
        std::max(state_->largest_unacknowledged, session.bytes_since_ack);
    return Status::OK;
  }

  void Commit(Session& session) {
    state_->durable.merge(session.pending);
    session.pending.clear();
  }

  void Acknowledge(Stream* stream, Session& session) {
    v1::StreamActivationsResponse response;
    {
      const std::lock_guard lock(state_->mutex);
      response.set_received_seq(session.received);
      response.set_durable_seq(DurableSeq());
      response.set_credit_bytes(state_->credit_bytes);
    }
    session.received_since_ack = 0;
    session.bytes_since_ack = 0;
    stream->Write(response);
  }

  void FillImported(v1::Statistic* statistic) {
    statistic->set_name(state_->imported_header.statistic());
    statistic->set_cols(state_->imported_header.cols());
    statistic->set_tokens(state_->imported_header.tokens());
    statistic->set_state(v1::SEALED);
  }

  const std::shared_ptr<FakeState> state_;
};

class FakeJobs final : public v1::Jobs::Service {
 public:
  explicit FakeJobs(std::shared_ptr<FakeState> state) : state_(std::move(state)) {}

  Status CreateJob(ServerContext*, const v1::CreateJobRequest* request,
                   v1::CreateJobResponse* response) override {
    const std::lock_guard lock(state_->mutex);
    ++state_->create_calls;
    if (state_->create_calls > 1 && state_->created.request_id() != request->request_id()) {
      return Status(StatusCode::ALREADY_EXISTS, "another request_id");
    }
    state_->created = *request;
    if (Status refusal = TakeStatus(state_->create_refusals); !refusal.ok()) return refusal;
    *response->mutable_job() = request->job();
    response->mutable_job()->set_name(request->parent() + "/jobs/j1");
    response->mutable_job()->set_state(v1::ACCEPTING);
    for (v1::Layer& layer : *response->mutable_job()->mutable_layers()) {
      layer.set_name(response->job().name() + "/layers/" + layer.layer_id());
    }
    return Status::OK;
  }

  // Two pages.
  Status ListJobs(ServerContext*, const v1::ListJobsRequest* request,
                  v1::ListJobsResponse* response) override {
    const bool first = request->page_token().empty();
    response->add_jobs()->set_name(request->parent() + (first ? "/jobs/new" : "/jobs/old"));
    if (first) response->set_next_page_token("more");
    return Status::OK;
  }

  Status CancelJob(ServerContext*, const v1::CancelJobRequest* request,
                   v1::Job* response) override {
    const std::lock_guard lock(state_->mutex);
    state_->cancelled = true;
    response->set_name(request->name());
    response->set_state(v1::CANCELLED);
    return Status::OK;
  }

  Status DeleteJob(ServerContext*, const v1::DeleteJobRequest*, google::protobuf::Empty*) override {
    const std::lock_guard lock(state_->mutex);
    return TakeStatus(state_->delete_results);
  }

  // Without scripted updates the watch stays silent until it is cancelled.
  Status WatchJob(ServerContext* context, const v1::WatchJobRequest*,
                  grpc::ServerWriter<v1::WatchJobResponse>* writer) override {
    int fault;
    std::vector<v1::WatchJobResponse> updates;
    {
      const std::lock_guard lock(state_->mutex);
      fault = TakeFault(state_->watch_faults);
      updates = state_->updates;
    }
    int sent = 0;
    for (const v1::WatchJobResponse& update : updates) {
      if (sent++ == fault) return Broken();
      writer->Write(update);
    }
    while (updates.empty() && !context->IsCancelled()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return Status::OK;
  }

 private:
  const std::shared_ptr<FakeState> state_;
};

class FakeResults final : public v1::Results::Service {
 public:
  explicit FakeResults(std::shared_ptr<FakeState> state) : state_(std::move(state)) {}

  Status ReadArtifact(ServerContext*, const v1::ReadArtifactRequest* request,
                      grpc::ServerWriter<v1::ReadArtifactResponse>* writer) override {
    const std::lock_guard lock(state_->mutex);
    const auto found = state_->artifacts.find(request->name());
    if (found == state_->artifacts.end()) return Status(StatusCode::NOT_FOUND, request->name());
    const std::string& bytes = found->second;
    const int fault = TakeFault(state_->read_faults);
    int messages = 0;
    int64_t offset = request->read_offset();
    do {
      if (messages == fault) return Broken();
      v1::ReadArtifactResponse response;
      response.set_offset(offset);
      response.set_data(
          bytes.substr(static_cast<size_t>(offset), static_cast<size_t>(state_->read_chunk_bytes)));
      response.set_crc32c(Crc32c(response.data()) ^ (state_->corrupt_chunk ? 1 : 0));
      response.set_size_bytes(static_cast<int64_t>(bytes.size()));
      if (messages == 0) {
        response.set_sha256(
            compute::ToBytes(Sha256::Of(state_->corrupt_digest ? bytes + "x" : bytes)));
      }
      offset += static_cast<int64_t>(response.data().size());
      ++messages;
      writer->Write(response);
    } while (offset < static_cast<int64_t>(bytes.size()));
    return Status::OK;
  }

 private:
  const std::shared_ptr<FakeState> state_;
};

}  // namespace

FakeServer::FakeServer(std::shared_ptr<FakeState> state, int port) {
  services_.push_back(std::make_unique<FakeServerInfo>(state));
  services_.push_back(std::make_unique<FakeWeights>(state));
  services_.push_back(std::make_unique<FakeCalibration>(state));
  services_.push_back(std::make_unique<FakeJobs>(state));
  services_.push_back(std::make_unique<FakeResults>(state));
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:" + std::to_string(port), grpc::InsecureServerCredentials(),
                           &port_);
  for (const auto& service : services_) builder.RegisterService(service.get());
  server_ = builder.BuildAndStart();
}

FakeServer::~FakeServer() {
  if (server_) server_->Shutdown(std::chrono::system_clock::now());
}

grpc::Status StatusWithDetails(grpc::StatusCode code, const std::string& message,
                               const std::vector<const google::protobuf::Message*>& details) {
  google::rpc::Status wire;
  wire.set_code(code);
  wire.set_message(message);
  for (const google::protobuf::Message* detail : details) wire.add_details()->PackFrom(*detail);
  return grpc::Status(code, message, wire.SerializeAsString());
}

}  // namespace quantd::client
