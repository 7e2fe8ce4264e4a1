// Any bytes that are a CreateJobRequest are either refused, by field, or a job with an estimate.
#include <google/protobuf/stubs/logging.h>

#include <memory>

#include "compute/backend/cpu/cpu_backend.h"
#include "quantd/v1/jobs.pb.h"
#include "server/jobs/job_rules.h"
#include "server/service/messages.h"
#include "tests/fuzz/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quantd;
  static const auto* const backend = compute::NewCpuBackend(1).release();
  static google::protobuf::LogHandler* const loud = google::protobuf::SetLogHandler(nullptr);
  static_cast<void>(loud);
  v1::CreateJobRequest request;
  if (!request.ParseFromArray(data, static_cast<int>(size))) return 0;
  auto job = server::FromProto(request.job(), "acme");
  if (job.ok()) {
    const auto estimate = server::PrepareJob(*job, {}, *backend);
    if (estimate.ok()) {
      FUZZ_CHECK(estimate->peak_bytes > 0 && estimate->output_bytes > 0);
      FUZZ_CHECK(!job->layers.empty());
      // Records are read again at every start.
      FUZZ_CHECK(compute::RecipeFromJson(compute::ToJson(job->recipe)).ok());
      for (const server::LayerRecord& layer : job->layers) {
        FUZZ_CHECK(compute::RecipeFromJson(compute::ToJson(layer.recipe)).ok());
      }
      const v1::Job described = server::ToProto(*job);
      FUZZ_CHECK(described.layers_size() == static_cast<int>(job->layers.size()));
      return 0;
    }
    job = estimate.status();
  }
  fuzz::CheckRefusal(job.status(), absl::StatusCode::kInvalidArgument,
                     absl::StatusCode::kResourceExhausted, absl::StatusCode::kUnimplemented,
                     absl::StatusCode::kPermissionDenied);
  return 0;
}
