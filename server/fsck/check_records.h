#pragma once

#include <string>
#include <vector>

#include "compute/second_moment/second_moment.h"
#include "server/store/records.h"

// What must hold in records by themselves, whatever happened to the server. Pure functions: each
// returns what is wrong, in words; empty: nothing.
namespace quantd::server {

// State, finished_layers and end_time follow from the layers; uploads are within their weight;
// queued and running layers have it; results belong to the layers that succeeded.
std::vector<std::string> CheckJob(const JobRecord& job,
                                  const std::vector<ArtifactRecord>& artifacts);

// A sealed statistic has its moment and no snapshots, an open one the other way round; every stream
// has a snapshot of as many chunks as it remembers.
std::vector<std::string> CheckStatistic(const StatisticRecord& statistic);

// A snapshot against its stream: both were written as one.
std::vector<std::string> CheckSnapshot(const StatisticRecord& statistic,
                                       const StatisticStreamRecord& stream,
                                       const compute::SecondMoment& snapshot);
// The same of the sum of a sealed statistic.
std::vector<std::string> CheckMoment(const StatisticRecord& statistic,
                                     const compute::SecondMoment& moment);

}  // namespace quantd::server
