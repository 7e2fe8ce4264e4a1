#include "server/service/requested_resource.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace quantd::server {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

std::string TextAt(const Message& message, const char* name) {
  const FieldDescriptor* field = message.GetDescriptor()->FindFieldByName(name);
  if (field == nullptr || field->is_repeated() || field->type() != FieldDescriptor::TYPE_STRING) {
    return "";
  }
  return message.GetReflection()->GetString(message, field);
}

const Message* MessageAt(const Message& message, const char* name) {
  const FieldDescriptor* field = message.GetDescriptor()->FindFieldByName(name);
  if (field == nullptr || field->is_repeated() ||
      field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
    return nullptr;
  }
  const auto* reflection = message.GetReflection();
  return reflection->HasField(message, field) ? &reflection->GetMessage(message, field) : nullptr;
}

}  // namespace

std::string RequestedResource(const Message& message) {
  for (const char* field : {"name", "layer", "statistic"}) {
    std::string text = TextAt(message, field);
    if (!text.empty()) return text;
  }
  const std::string parent = TextAt(message, "parent");
  const std::string job = TextAt(message, "job_id");
  if (!job.empty()) return absl::StrCat(parent, "/jobs/", job);
  const std::string statistic = TextAt(message, "statistic_id");
  if (!statistic.empty()) return absl::StrCat(parent, "/statistics/", statistic);
  for (const char* field : {"header", "job"}) {
    const Message* inner = MessageAt(message, field);
    if (inner == nullptr) continue;
    std::string text = RequestedResource(*inner);
    if (!text.empty()) return text;
  }
  return parent;
}

}  // namespace quantd::server
