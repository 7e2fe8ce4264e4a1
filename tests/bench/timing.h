#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

// What the compute benchmarks share: medians of wall time, and one JSON object a line.
namespace quantd::compute {

using Clock = std::chrono::steady_clock;

inline double SecondsOf(const std::function<void()>& work) {
  const Clock::time_point start = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Median of runs over about half a second, at least three, after one to warm up.
inline double MedianSeconds(const std::function<void()>& work) {
  work();
  std::vector<double> seconds;
  double total = 0.0;
  while (seconds.size() < 3 || (total < 0.5 && seconds.size() < 1000)) {
    seconds.push_back(SecondsOf(work));
    total += seconds.back();
  }
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  return seconds[seconds.size() / 2];
}

inline void Print(const std::string& name, double value, const std::string& unit,
                  const nlohmann::ordered_json& more = nlohmann::ordered_json::object()) {
  nlohmann::ordered_json line = {{"name", name}, {"value", value}, {"unit", unit}};
  line.update(more);
  std::printf("%s\n", line.dump().c_str());
  std::fflush(stdout);
}

}  // namespace quantd::compute
