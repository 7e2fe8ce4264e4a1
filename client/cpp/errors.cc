#include "client/cpp/errors.h"

#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace quantd::client {
namespace {

constexpr absl::string_view kErrorInfo = "type.googleapis.com/google.rpc.ErrorInfo";
constexpr absl::string_view kRetryInfo = "type.googleapis.com/google.rpc.RetryInfo";

// What the details add to the message, a sentence each.
std::vector<std::string> Explain(const google::rpc::Status& wire) {
  std::vector<std::string> sentences;
  for (const google::protobuf::Any& detail : wire.details()) {
    if (google::rpc::BadRequest bad; detail.UnpackTo(&bad)) {
      for (const auto& violation : bad.field_violations()) {
        sentences.push_back(
            absl::StrCat("field ", violation.field(), ": ", violation.description()));
      }
    } else if (google::rpc::QuotaFailure quota; detail.UnpackTo(&quota)) {
      for (const auto& violation : quota.violations()) {
        sentences.push_back(
            absl::StrCat("quota of ", violation.subject(), ": ", violation.description()));
      }
    } else if (google::rpc::PreconditionFailure missing; detail.UnpackTo(&missing)) {
      for (const auto& violation : missing.violations()) {
        sentences.push_back(absl::StrCat(violation.subject(), ": ", violation.description()));
      }
    }
  }
  return sentences;
}

// Whether a sentence's description, the part behind "subject: ", is already in the message.
bool Repeats(absl::string_view message, absl::string_view sentence) {
  const size_t colon = sentence.find(": ");
  return absl::StrContains(message, sentence.substr(colon + 2));
}

std::string Compose(absl::string_view message, const std::vector<std::string>& sentences) {
  if (sentences.empty()) return std::string(message);
  // Servers often repeat the first violation as the message; the sentence with the field's name
  // says more.
  const std::string explanation = absl::StrJoin(sentences, "; ");
  for (const std::string& sentence : sentences) {
    if (Repeats(message, sentence)) return explanation;
  }
  if (message.empty()) return explanation;
  return absl::StrCat(message, ": ", explanation);
}

absl::Duration ToDuration(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

}  // namespace

absl::Status StatusFromWire(int code, absl::string_view message, absl::string_view details) {
  if (code == 0) return absl::OkStatus();
  google::rpc::Status wire;
  if (!wire.ParseFromArray(details.data(), static_cast<int>(details.size()))) wire.Clear();

  std::string text = Compose(message, Explain(wire));
  for (const google::protobuf::Any& detail : wire.details()) {
    if (google::rpc::RetryInfo retry; detail.UnpackTo(&retry)) {
      absl::StrAppend(&text, " (try again in ",
                      absl::FormatDuration(ToDuration(retry.retry_delay())), ")");
    }
  }
  absl::Status status(static_cast<absl::StatusCode>(code), text);
  for (const google::protobuf::Any& detail : wire.details()) {
    status.SetPayload(detail.type_url(), absl::Cord(detail.value()));
  }
  return status;
}

std::string ErrorReason(const absl::Status& status) {
  google::rpc::ErrorInfo info;
  const auto payload = status.GetPayload(kErrorInfo);
  if (!payload || !info.ParseFromString(std::string(*payload))) return "";
  return info.reason();
}

std::optional<absl::Duration> RetryDelay(const absl::Status& status) {
  google::rpc::RetryInfo retry;
  const auto payload = status.GetPayload(kRetryInfo);
  if (!payload || !retry.ParseFromString(std::string(*payload))) return std::nullopt;
  return ToDuration(retry.retry_delay());
}

}  // namespace quantd::client
