#include "server/jobs/weight_source.h"

#include <algorithm>
#include <map>
#include <string>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "server/errors/error.h"

namespace quantd::server {
namespace {

std::string ShapeOf(const LayerRecord& layer) {
  return absl::StrFormat("%d x %d %s", layer.rows, layer.cols, compute::NameOf(layer.dtype));
}

absl::Status Take(const JobRecord& from, absl::string_view source_id, const std::string& field,
                  LayerRecord& layer) {
  const std::string name =
      absl::StrCat("tenants/", from.tenant, "/jobs/", from.job_id, "/layers/", source_id);
  const auto source = std::find_if(from.layers.begin(), from.layers.end(),
                                   [&](const auto& l) { return l.layer_id == source_id; });
  if (source == from.layers.end()) {
    return Error(absl::StatusCode::kNotFound, "LAYER_NOT_FOUND",
                 absl::StrCat(field, ": ", name, " does not exist"));
  }
  if (std::tie(source->rows, source->cols, source->dtype) !=
      std::tie(layer.rows, layer.cols, layer.dtype)) {
    return InvalidField(field,
                        absl::StrCat("expected a weight of ", ShapeOf(layer),
                                     ", as the layer declares, got one of ", ShapeOf(*source)));
  }
  if (source->weight.name.empty()) {
    return FailedPrecondition("UPLOAD_INCOMPLETE", name,
                              absl::StrCat(field, ": its weights are not complete yet"));
  }
  layer.weight = source->weight;
  layer.upload_committed = source->weight.size;
  return absl::OkStatus();
}

}  // namespace

absl::Status TakeWeights(JobStore& jobs, JobRecord& job) {
  std::map<std::string, JobRecord> sources;
  for (size_t i = 0; i < job.layers.size(); ++i) {
    LayerRecord& layer = job.layers[i];
    if (layer.weight_of.empty()) continue;
    const std::string field = absl::StrCat("job.layers[", i, "].weight_of");
    const std::pair<std::string, std::string> source = absl::StrSplit(layer.weight_of, '/');
    auto known = sources.find(source.first);
    if (known == sources.end()) {
      absl::StatusOr<JobRecord> record = jobs.GetJob(job.tenant, source.first);
      if (!record.ok()) return Annotate(record.status(), field);
      known = sources.emplace(source.first, *std::move(record)).first;
    }
    if (absl::Status s = Take(known->second, source.second, field, layer); !s.ok()) return s;
  }
  return absl::OkStatus();
}

}  // namespace quantd::server
