#include "server/service/quantize_service.h"

#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "compute/pipeline/pipeline.h"
#include "quantd/v1/quantize.grpc.pb.h"
#include "server/errors/error.h"
#include "server/service/messages.h"

namespace quantd::server {
namespace {

// Of the tensors' elements; a request without any is small whatever else it holds.
int64_t InlineBytes(const v1::QuantizeTensorRequest& request) {
  size_t bytes = 0;
  for (const v1::InlineTensor* tensor :
       {&request.weight(), &request.activations(), &request.second_moment()}) {
    bytes += tensor->data().size() + sizeof(double) * tensor->values_size();
  }
  return static_cast<int64_t>(bytes);
}

absl::Status CheckMatrix(absl::string_view field, const v1::InlineTensor& tensor,
                         std::optional<int64_t> cols) {
  const bool is_matrix = tensor.shape_size() == 2 && tensor.shape(0) >= 1 && tensor.shape(1) >= 1;
  if (!is_matrix || (cols.has_value() && tensor.shape(1) != *cols)) {
    return InvalidField(
        absl::StrCat(field, ".shape"),
        absl::StrCat("expected [rows, ", cols.has_value() ? absl::StrCat(*cols) : "cols",
                     "], got [", absl::StrJoin(tensor.shape(), ", "), "]"));
  }
  if (!tensor.data().empty() && tensor.values_size() > 0) {
    return InvalidField(field, "expected data or values, got both");
  }
  return absl::OkStatus();
}

absl::Status CheckFinite(absl::string_view field, const compute::Tensor& tensor) {
  const int64_t bad =
      compute::FindNonFinite(tensor.dtype(), tensor.bytes().data(), tensor.elements());
  if (bad < 0) return absl::OkStatus();
  return InvalidField(field,
                      absl::StrFormat("expected finite values, got NaN or Inf at row %d, column %d",
                                      bad / tensor.dim(1), bad % tensor.dim(1)),
                      "NON_FINITE");
}

// The size is checked before the shape allocates anything.
absl::StatusOr<compute::Tensor> ToTensor(absl::string_view field, const v1::InlineTensor& tensor,
                                         std::optional<int64_t> cols) {
  if (absl::Status s = CheckMatrix(field, tensor, cols); !s.ok()) return s;
  const bool from_values = tensor.data().empty();
  compute::DType dtype = compute::DType::kF64;
  if (!from_values) {
    const auto parsed = FromProto(absl::StrCat(field, ".dtype"), tensor.dtype());
    if (!parsed.ok()) return parsed.status();
    dtype = *parsed;
  }
  const std::vector<int64_t> shape(tensor.shape().begin(), tensor.shape().end());
  const absl::StatusOr<int64_t> needed = compute::DenseBytes(dtype, shape);
  if (!needed.ok()) return InvalidField(absl::StrCat(field, ".shape"), needed.status());
  const int64_t came =
      from_values ? int64_t{8} * tensor.values_size() : static_cast<int64_t>(tensor.data().size());
  if (came != *needed) {
    const int64_t element = static_cast<int64_t>(compute::SizeOf(dtype));
    return InvalidField(
        absl::StrCat(field, from_values ? ".values" : ".data"),
        absl::StrFormat("expected %d elements for shape [%s], got %d", *needed / element,
                        absl::StrJoin(shape, ", "), came / element));
  }
  const char* bytes =
      from_values ? reinterpret_cast<const char*>(tensor.values().data()) : tensor.data().data();
  auto result = compute::Tensor::FromBytes(
      dtype, shape, {reinterpret_cast<const std::byte*>(bytes), static_cast<size_t>(came)});
  if (!result.ok()) return result.status();
  if (absl::Status s = CheckFinite(field, *result); !s.ok()) return s;
  return result;
}

absl::StatusOr<compute::SecondMoment> MomentOf(const v1::QuantizeTensorRequest& request,
                                               int64_t cols, compute::Backend& backend) {
  compute::MomentSpec spec;
  spec.cols = cols;
  if (request.has_second_moment()) {
    auto matrix = ToTensor("second_moment", request.second_moment(), cols);
    if (!matrix.ok()) return matrix.status();
    if (matrix->dim(0) != cols) {
      return InvalidField("second_moment.shape", absl::StrFormat("expected [%d, %d], got [%d, %d]",
                                                                 cols, cols, matrix->dim(0), cols));
    }
    std::vector<double> values(matrix->elements());
    compute::ConvertToDouble(matrix->dtype(), matrix->bytes().data(), matrix->elements(),
                             values.data());
    auto moment = compute::SecondMoment::FromMatrix(spec, 1, /*is_mean=*/true, values);
    if (!moment.ok()) return InvalidField("second_moment", moment.status());
    return moment;
  }
  auto tokens = ToTensor("activations", request.activations(), cols);
  if (!tokens.ok()) return tokens.status();
  auto accumulator = backend.NewAccumulator(spec, nullptr);
  if (!accumulator.ok()) return accumulator.status();
  if (absl::Status s =
          (*accumulator)
              ->Add("inline", 0, tokens->dtype(), tokens->dim(0), std::as_const(*tokens).bytes());
      !s.ok()) {
    return InvalidField("activations", s);
  }
  return (*accumulator)->Snapshot();
}

class QuantizeService final : public v1::Quantize::CallbackService {
 public:
  QuantizeService(const CallEnvironment& environment, compute::Backend& backend,
                  int64_t max_inline_bytes)
      : environment_(environment), backend_(backend), max_inline_bytes_(max_inline_bytes) {}

  grpc::ServerUnaryReactor* QuantizeTensor(grpc::CallbackServerContext* context,
                                           const v1::QuantizeTensorRequest* request,
                                           v1::QuantizeTensorResponse* response) override {
    return RunUnary(environment_, context, "quantd.v1.Quantize/QuantizeTensor", request, response,
                    [=, this](const std::string&) { return Run(*request, *response); });
  }

 private:
  absl::Status Run(const v1::QuantizeTensorRequest& request, v1::QuantizeTensorResponse& response) {
    if (const int64_t size = InlineBytes(request); size > max_inline_bytes_) {
      return QuotaExceeded("INLINE_TOO_LARGE", "request",
                           absl::StrFormat("inline tensors may take %d bytes (limits."
                                           "max_inline_bytes), got %d; create a job instead",
                                           max_inline_bytes_, size),
                           absl::ZeroDuration());
    }
    const auto asked = FromProto("recipe", request.recipe());
    if (!asked.ok()) return asked.status();
    const auto recipe = compute::ResolveRecipe(*asked);
    if (!recipe.ok()) return InvalidFieldWithin("recipe", recipe.status());
    if (absl::Status s = compute::CheckRunnable(backend_, *recipe); !s.ok())
      return Annotate(s, "recipe");
    const auto weight = ToTensor("weight", request.weight(), std::nullopt);
    if (!weight.ok()) return weight.status();
    if (absl::Status s = compute::CheckGeometry(*recipe, weight->dim(0), weight->dim(1)); !s.ok()) {
      return InvalidField("weight.shape", s);
    }
    if (request.has_activations() && request.has_second_moment()) {
      return InvalidField("second_moment", "expected activations or second_moment, got both");
    }
    std::optional<compute::SecondMoment> moment;
    if (request.has_activations() || request.has_second_moment()) {
      auto made = MomentOf(request, weight->dim(1), backend_);
      if (!made.ok()) return made.status();
      moment = std::move(*made);
    } else if (compute::NeedsSecondMoment(*recipe)) {
      return InvalidField("activations",
                          absl::StrCat("expected activations or second_moment, which transform ",
                                       compute::NameOf(recipe->transform), " needs, got none"));
    }
    const compute::LayerInput input{"weight", &*weight};
    auto results = compute::QuantizeLayers(
        backend_, *recipe, {&input, 1}, {.second_moment = moment.has_value() ? &*moment : nullptr},
        nullptr, [](const compute::PipelineProgress&) {});
    if (!results.ok()) return results.status();
    return Fill(results->front(), request.return_dequantized(), response);
  }

  static absl::Status Fill(const compute::LayerResult& result, bool return_dequantized,
                           v1::QuantizeTensorResponse& response) {
    for (const compute::NamedTensor& named : result.tensors) {
      v1::PackedTensor* packed = response.add_tensors();
      packed->set_name(named.name);
      packed->set_dtype(std::string(compute::NameOf(named.tensor.dtype())));
      for (const int64_t dim : named.tensor.shape()) packed->add_shape(dim);
      const auto bytes = named.tensor.bytes();
      packed->set_data(bytes.data(), bytes.size());
    }
    auto report = ErrorReportFromJson(compute::ToJson(result.report));
    if (!report.ok()) return report.status();
    *response.mutable_report() = std::move(*report);
    if (!return_dequantized) return absl::OkStatus();
    const auto dense = compute::DequantizeResult(result.tensors, result.report.recipe_json);
    if (!dense.ok()) return dense.status();
    v1::InlineTensor* out = response.mutable_dequantized();
    out->set_dtype(v1::F32);
    for (const int64_t dim : dense->shape()) out->add_shape(dim);
    for (const float value : dense->as<float>()) out->add_values(value);
    return absl::OkStatus();
  }

  const CallEnvironment& environment_;
  compute::Backend& backend_;
  const int64_t max_inline_bytes_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewQuantizeService(const CallEnvironment& environment,
                                                  compute::Backend& backend,
                                                  int64_t max_inline_bytes) {
  return std::make_unique<QuantizeService>(environment, backend, max_inline_bytes);
}

}  // namespace quantd::server
