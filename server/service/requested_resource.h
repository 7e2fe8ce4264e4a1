#pragma once

#include <string>

#include "google/protobuf/message.h"

namespace quantd::server {

// The resource that a request or its answer is about, for the audit log: what stands in `name`,
// `layer` or `statistic`, or in `parent` with the id that is asked for, also within `header` or
// `job`. Empty where the message names none. Not checked: whatever the caller wrote.
std::string RequestedResource(const google::protobuf::Message& message);

}  // namespace quantd::server
