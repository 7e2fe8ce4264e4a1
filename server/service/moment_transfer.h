#pragma once

#include <memory>
#include <string>

#include "quantd/v1/calibration.pb.h"
#include "server/ingest/statistics.h"
#include "server/service/call.h"
#include "server/service/resource_name.h"

// Whole second moments over the wire: header, chunks of matrix and sample bytes, finish with their
// SHA-256.
namespace quantd::server {

std::unique_ptr<StreamConsumer<v1::ImportStatisticRequest, v1::Statistic>> NewMomentImport(
    std::string tenant, Statistics& statistics, const CallEnvironment& environment);

// Loads the statistic with the first message. The sum is sent as F64.
StreamOut<v1::ExportStatisticResponse>::Next NewMomentExport(const ResourceName& name,
                                                             Statistics& statistics,
                                                             Metrics& metrics);

}  // namespace quantd::server
