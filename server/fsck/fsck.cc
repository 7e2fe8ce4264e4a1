#include "server/fsck/fsck.h"

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "server/fsck/check_records.h"
#include "server/jobs/job_rules.h"
#include "server/store/blob_store.h"
#include "server/store/data_directory.h"
#include "server/store/local_blob_store.h"
#include "server/store/sqlite.h"
#include "server/store/sqlite_job_store.h"
#include "server/store/sqlite_records.h"
#include "server/store/sqlite_schema.h"

namespace quantd::server {
namespace {

using sqlite::Database;
using sqlite::Query;
using sqlite::Transaction;

// Calls visit(row) for every row of `sql`, whose parameters are the texts.
absl::Status ForEachRow(Database& database, absl::string_view sql,
                        const std::vector<std::string>& keys,
                        const std::function<absl::Status(Query&)>& visit) {
  auto query = database.Prepare(sql);
  if (!query.ok()) return query.status();
  for (const std::string& key : keys) query->Bind(key);
  while (true) {
    auto row = query->Step();
    if (!row.ok()) return row.status();
    if (!*row) return absl::OkStatus();
    if (auto s = visit(*query); !s.ok()) return s;
  }
}

absl::Status Run(Database& database, absl::string_view sql, const std::vector<std::string>& keys) {
  return ForEachRow(database, sql, keys, [](Query&) { return absl::OkStatus(); });
}

std::string JobName(const JobRecord& job) {
  return absl::StrCat("tenants/", job.tenant, "/jobs/", job.job_id);
}
std::string NameOf(const StatisticRecord& statistic) {
  return absl::StrCat("tenants/", statistic.tenant, "/statistics/", statistic.statistic_id);
}

// One check of one directory. Finds first, then repairs: nothing is changed on half a picture.
class Fsck {
 public:
  Fsck(const DataDirectory& directory, BlobStore& blobs) : directory_(directory), blobs_(blobs) {}

  absl::StatusOr<FsckReport> Check(bool repair) {
    auto database = Database::Open(directory_.database_path(), 0);
    if (absl::IsDataLoss(database.status())) {
      Damage("DATABASE_DAMAGED", directory_.database_path(), database.status().message());
      return report_;
    }
    if (!database.ok()) return database.status();
    database_ = *std::move(database);
    if (auto s = CheckDatabase(); !s.ok()) return s;
    if (!report_.findings.empty()) return report_;  // what the records say is not to be trusted
    if (auto s = CheckJobs(); !s.ok()) return s;
    if (auto s = CheckStatistics(); !s.ok()) return s;
    if (auto s = CheckOrphans(); !s.ok()) return s;
    if (repair) {
      if (auto s = Repair(); !s.ok()) return s;
    }
    return report_;
  }

 private:
  // A record whose blob is damaged and the change that brings it in line.
  using Change = std::function<absl::Status()>;

  Finding& Damage(absl::string_view kind, absl::string_view subject, absl::string_view what) {
    report_.findings.push_back({.kind = std::string(kind),
                                .subject = std::string(subject),
                                .what = std::string(what),
                                .garbage = false,
                                .remedy = "",
                                .repaired = false});
    return report_.findings.back();
  }
  void Remedy(Finding& finding, std::string remedy, Change change) {
    finding.remedy = std::move(remedy);
    repairs_.emplace_back(report_.findings.size() - 1, std::move(change));
  }

  absl::Status CheckDatabase();
  absl::Status CheckJobs();
  absl::Status CheckJobRecord(const JobRecord& job);
  void CheckWeight(const JobRecord& job, const LayerRecord& layer);
  void CheckStaging(const JobRecord& job, const LayerRecord& layer);
  void CheckArtifact(const JobRecord& job, const ArtifactRecord& artifact);
  absl::Status CheckStatistics();
  void CheckStatisticRecord(const StatisticRecord& statistic);
  void CheckSum(const StatisticRecord& statistic, const BlobRef& blob, absl::string_view owner,
                const std::function<std::vector<std::string>(const compute::SecondMoment&)>& check,
                Change change);
  absl::Status CheckOrphans();
  absl::Status Verify(const std::string& tenant, const BlobRef& blob);
  absl::Status Quarantine(const std::string& blob);
  absl::Status Repair();
  absl::Status DeriveJob(const JobRecord& job);

  const DataDirectory& directory_;
  BlobStore& blobs_;
  std::unique_ptr<Database> database_;
  FsckReport report_;
  std::set<std::string> referenced_;
  std::map<std::string, absl::Status> verified_;
  std::vector<std::pair<size_t, Change>> repairs_;  // of which finding
  std::map<std::string, JobRecord> changed_jobs_;   // to be derived anew, by name
};

absl::Status Fsck::CheckDatabase() {
  if (auto s = sqlite::PrepareSchema(*database_); !s.ok()) {
    if (!absl::IsDataLoss(s)) return s;
    Damage("DATABASE_DAMAGED", directory_.database_path(), s.message());
    return absl::OkStatus();
  }
  absl::Status checked = ForEachRow(*database_, "PRAGMA integrity_check(100)", {}, [&](Query& row) {
    if (row.Text(0) != "ok") {
      Damage("DATABASE_DAMAGED", directory_.database_path(), row.Text(0));
    }
    return absl::OkStatus();
  });
  if (checked.ok()) {
    checked = ForEachRow(*database_, "PRAGMA foreign_key_check", {}, [&](Query& row) {
      Damage("DATABASE_DAMAGED", directory_.database_path(),
             absl::StrCat("a row of ", row.Text(0), " refers to none of ", row.Text(2)));
      return absl::OkStatus();
    });
  }
  if (!absl::IsDataLoss(checked)) return checked;
  Damage("DATABASE_DAMAGED", directory_.database_path(), checked.message());
  return absl::OkStatus();
}

// Reads a blob once, however many records share it.
absl::Status Fsck::Verify(const std::string& tenant, const BlobRef& blob) {
  referenced_.insert(blob.name);
  const auto [known, is_new] = verified_.try_emplace(blob.name);
  if (!is_new) return known->second;
  ++report_.blobs;
  report_.bytes += blob.size;
  known->second =
      blob.name.rfind(tenant + "/", 0) == 0
          ? blobs_.Open(blob).status()
          : absl::DataLossError(absl::StrCat("blob ", blob.name, " belongs to another tenant"));
  return known->second;
}

// ---- jobs

absl::Status Fsck::CheckJobs() {
  std::vector<JobRecord> jobs;
  sqlite::RecipeReader recipes;
  absl::Status read = ForEachRow(
      *database_,
      absl::StrCat("SELECT ", sqlite::kJobColumns, " FROM jobs ORDER BY tenant, job_id"), {},
      [&](Query& row) {
        auto job = sqlite::ReadJob(row, recipes);
        if (job.ok()) {
          jobs.push_back(*std::move(job));
        } else {
          Damage("RECORD_UNREADABLE", absl::StrCat("tenants/", row.Text(0), "/jobs/", row.Text(1)),
                 job.status().message());
        }
        return absl::OkStatus();
      });
  if (!read.ok()) return read;
  for (JobRecord& job : jobs) {
    ++report_.jobs;
    read =
        ForEachRow(*database_,
                   absl::StrCat("SELECT ", sqlite::kLayerColumns,
                                " FROM layers WHERE tenant = ? AND job_id = ? ORDER BY position"),
                   {job.tenant, job.job_id}, [&](Query& row) {
                     auto layer = sqlite::ReadLayer(row, job.recipe, recipes);
                     if (!layer.ok()) {
                       Damage("RECORD_UNREADABLE", JobName(job), layer.status().message());
                       // Its blobs are not left over, whatever else is wrong with it.
                       for (const int column : {12, 13}) referenced_.insert(row.Text(column));
                       return absl::OkStatus();
                     }
                     job.layers.push_back(*std::move(layer));
                     return absl::OkStatus();
                   });
    if (!read.ok()) return read;
    if (auto s = CheckJobRecord(job); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status Fsck::CheckJobRecord(const JobRecord& job) {
  std::vector<ArtifactRecord> artifacts;
  absl::Status read = ForEachRow(*database_,
                                 absl::StrCat("SELECT ", sqlite::kArtifactColumns,
                                              " FROM artifacts WHERE tenant = ? AND job_id = ?"),
                                 {job.tenant, job.job_id}, [&](Query& row) {
                                   artifacts.push_back(sqlite::ReadArtifact(row));
                                   return absl::OkStatus();
                                 });
  if (!read.ok()) return read;
  for (const std::string& wrong : CheckJob(job, artifacts)) {
    Finding& finding = Damage("JOB_INCONSISTENT", JobName(job), wrong);
    JobRecord derived = job;
    DeriveJobState(derived, absl::Now());
    derived.end_time = HasEnded(derived.state) ? derived.end_time : std::nullopt;
    if (CheckJob(derived, artifacts).empty()) {  // all that is wrong
      Remedy(finding, "state and counts are derived from the layers again",
             [this, job] { return DeriveJob(job); });
    }
  }
  for (const LayerRecord& layer : job.layers) {
    if (!layer.weight.name.empty()) CheckWeight(job, layer);
    if (!layer.upload_staging.empty()) CheckStaging(job, layer);
  }
  for (const ArtifactRecord& artifact : artifacts) CheckArtifact(job, artifact);
  return absl::OkStatus();
}

void Fsck::CheckWeight(const JobRecord& job, const LayerRecord& layer) {
  const absl::Status status = Verify(job.tenant, layer.weight);
  if (status.ok()) return;
  Finding& finding =
      Damage("BLOB_DAMAGED", absl::StrCat(JobName(job), "/layers/", layer.layer_id, " weight"),
             status.message());
  const bool ended = HasEnded(layer.state);
  Remedy(finding,
         absl::StrCat("the file goes to quarantine/; ",
                      ended ? "the layer keeps its result and has no weight any more"
                            : "the layer waits for its weight to be uploaded again"),
         [this, job, layer, ended] {
           if (auto s = Quarantine(layer.weight.name); !s.ok()) return s;
           changed_jobs_.emplace(JobName(job), job);
           if (auto s = Run(*database_,
                            "UPDATE layers SET weight_name = NULL, weight_size = 0,"
                            " weight_sha256 = x'', upload_committed = 0, upload_staging = NULL"
                            " WHERE tenant = ? AND job_id = ? AND layer_id = ?",
                            {job.tenant, job.job_id, layer.layer_id});
               !s.ok() || ended) {
             return s;
           }
           return Run(*database_,
                      "UPDATE layers SET state = 'waiting'"
                      " WHERE tenant = ? AND job_id = ? AND layer_id = ?",
                      {job.tenant, job.job_id, layer.layer_id});
         });
}

// The file of an upload that is under way, or a blob whose record a crash prevented.
void Fsck::CheckStaging(const JobRecord& job, const LayerRecord& layer) {
  referenced_.insert(layer.upload_staging);
  const auto state = blobs_.Describe(layer.upload_staging);
  const int64_t size = state.ok() ? state->size : 0;
  if (size >= layer.upload_committed && (state.ok() || absl::IsNotFound(state.status()))) return;
  Finding& finding =
      Damage("STAGING_DAMAGED", absl::StrCat(JobName(job), "/layers/", layer.layer_id),
             absl::StrCat(layer.upload_committed, " bytes were durable, ", size, " are there (",
                          layer.upload_staging, ")"));
  Remedy(finding, "the file goes to quarantine/; the upload starts over", [this, job, layer] {
    if (auto s = Quarantine(layer.upload_staging); !s.ok()) return s;
    return Run(*database_,
               "UPDATE layers SET upload_staging = NULL, upload_committed = 0"
               " WHERE tenant = ? AND job_id = ? AND layer_id = ?",
               {job.tenant, job.job_id, layer.layer_id});
  });
}

void Fsck::CheckArtifact(const JobRecord& job, const ArtifactRecord& artifact) {
  const absl::Status status = Verify(job.tenant, artifact.blob);
  if (status.ok()) return;
  Finding& finding =
      Damage("BLOB_DAMAGED", absl::StrCat(JobName(job), "/artifacts/", artifact.artifact_id),
             status.message());
  Remedy(finding, "the layer's results go to quarantine/; the layer has failed with DATA_LOSS",
         [this, job, artifact] {
           std::vector<std::string> blobs;
           absl::Status read =
               ForEachRow(*database_,
                          "SELECT blob_name FROM artifacts"
                          " WHERE tenant = ? AND job_id = ? AND layer_id = ?",
                          {job.tenant, job.job_id, artifact.layer_id}, [&](Query& row) {
                            blobs.push_back(row.Text(0));
                            return absl::OkStatus();
                          });
           if (!read.ok()) return read;
           for (const std::string& blob : blobs) {
             if (auto s = Quarantine(blob); !s.ok()) return s;
           }
           changed_jobs_.emplace(JobName(job), job);
           if (auto s = Run(*database_,
                            "DELETE FROM artifacts"
                            " WHERE tenant = ? AND job_id = ? AND layer_id = ?",
                            {job.tenant, job.job_id, artifact.layer_id});
               !s.ok()) {
             return s;
           }
           const absl::Status lost = absl::DataLossError(
               "the stored result was damaged; fsck has put it into quarantine");
           return Run(*database_,
                      "UPDATE layers SET state = 'failed', error = ?"
                      " WHERE tenant = ? AND job_id = ? AND layer_id = ?",
                      {sqlite::ErrorToJson(lost), job.tenant, job.job_id, artifact.layer_id});
         });
}

// Writes what follows from the layers, as they are now.
absl::Status Fsck::DeriveJob(const JobRecord& job) {
  JobRecord now = job;
  now.layers.clear();
  sqlite::RecipeReader recipes;
  absl::Status read =
      ForEachRow(*database_,
                 absl::StrCat("SELECT ", sqlite::kLayerColumns,
                              " FROM layers WHERE tenant = ? AND job_id = ? ORDER BY position"),
                 {job.tenant, job.job_id}, [&](Query& row) {
                   auto layer = sqlite::ReadLayer(row, job.recipe, recipes);
                   if (!layer.ok()) return layer.status();
                   now.layers.push_back(*std::move(layer));
                   return absl::OkStatus();
                 });
  if (!read.ok()) return read;
  DeriveJobState(now, absl::Now());
  if (!HasEnded(now.state)) now.end_time.reset();
  auto query = database_->Prepare(
      "UPDATE jobs SET end_time_us = ?, state = ?, finished_layers = ?"
      " WHERE tenant = ? AND job_id = ?");
  if (!query.ok()) return query.status();
  sqlite::BindOptionalTime(*query, now.end_time);
  query->Bind(sqlite::NameOf(now.state)).Bind(int64_t{now.finished_layers});
  return query->Bind(job.tenant).Bind(job.job_id).Run();
}

// ---- statistics

absl::Status Fsck::CheckStatistics() {
  std::vector<StatisticRecord> statistics;
  absl::Status read =
      ForEachRow(*database_,
                 absl::StrCat("SELECT ", sqlite::kStatisticColumns,
                              " FROM statistics ORDER BY tenant, statistic_id"),
                 {}, [&](Query& row) {
                   auto statistic = sqlite::ReadStatistic(row);
                   if (statistic.ok()) {
                     statistics.push_back(*std::move(statistic));
                   } else {
                     Damage("RECORD_UNREADABLE",
                            absl::StrCat("tenants/", row.Text(0), "/statistics/", row.Text(1)),
                            statistic.status().message());
                     referenced_.insert(row.Text(10));
                   }
                   return absl::OkStatus();
                 });
  if (!read.ok()) return read;
  for (StatisticRecord& statistic : statistics) {
    ++report_.statistics;
    read = ForEachRow(
        *database_,
        absl::StrCat(
            "SELECT ", sqlite::kStreamColumns,
            " FROM statistic_streams WHERE tenant = ? AND statistic_id = ? ORDER BY stream_id"),
        {statistic.tenant, statistic.statistic_id}, [&](Query& row) {
          auto stream = sqlite::ReadStream(row);
          if (stream.ok()) {
            statistic.streams.push_back(*std::move(stream));
          } else {
            Damage("RECORD_UNREADABLE", NameOf(statistic), stream.status().message());
            referenced_.insert(row.Text(4));
          }
          return absl::OkStatus();
        });
    if (!read.ok()) return read;
    CheckStatisticRecord(statistic);
  }
  return absl::OkStatus();
}

void Fsck::CheckStatisticRecord(const StatisticRecord& statistic) {
  const std::string name = NameOf(statistic);
  for (const std::string& wrong : CheckStatistic(statistic)) {
    Damage("STATISTIC_INCONSISTENT", name, wrong);
  }
  if (!statistic.moment.name.empty()) {
    CheckSum(
        statistic, statistic.moment, name,
        [&](const compute::SecondMoment& moment) { return CheckMoment(statistic, moment); },
        [this, statistic] {
          if (auto s = Run(*database_,
                           "DELETE FROM statistic_streams WHERE tenant = ? AND statistic_id = ?",
                           {statistic.tenant, statistic.statistic_id});
              !s.ok()) {
            return s;
          }
          return Run(*database_,
                     "UPDATE statistics SET sealed = 0, tokens = 0, digest = '',"
                     " moment_name = NULL, moment_size = 0, moment_sha256 = x''"
                     " WHERE tenant = ? AND statistic_id = ?",
                     {statistic.tenant, statistic.statistic_id});
        });
  }
  for (const StatisticStreamRecord& stream : statistic.streams) {
    if (stream.snapshot.name.empty()) continue;
    CheckSum(
        statistic, stream.snapshot, absl::StrCat(name, " stream ", stream.stream_id),
        [&](const compute::SecondMoment& snapshot) {
          return CheckSnapshot(statistic, stream, snapshot);
        },
        [this, statistic, stream] {
          return Run(*database_,
                     "DELETE FROM statistic_streams"
                     " WHERE tenant = ? AND statistic_id = ? AND stream_id = ?",
                     {statistic.tenant, statistic.statistic_id, stream.stream_id});
        });
  }
}

void Fsck::CheckSum(
    const StatisticRecord& statistic, const BlobRef& blob, absl::string_view owner,
    const std::function<std::vector<std::string>(const compute::SecondMoment&)>& check,
    Change change) {
  absl::Status status = Verify(statistic.tenant, blob);
  std::string kind = "BLOB_DAMAGED";
  if (status.ok()) {
    kind = "STATISTIC_INCONSISTENT";
    const auto bytes = blobs_.ReadAll(blob);
    const auto moment = bytes.ok() ? compute::SecondMoment::Parse(*bytes) : bytes.status();
    status = moment.status();
    if (moment.ok()) {
      const std::vector<std::string> wrong = check(*moment);
      if (wrong.empty()) return;
      status = absl::DataLossError(wrong.front());
    }
  }
  Finding& finding = Damage(kind, owner, status.message());
  Remedy(finding,
         statistic.sealed ? "the file goes to quarantine/; the statistic is open again and empty"
                          : "the file goes to quarantine/; the stream starts over",
         [this, blob, change = std::move(change)] {
           if (auto s = Quarantine(blob.name); !s.ok()) return s;
           return change();
         });
}

// ---- files

absl::Status Fsck::CheckOrphans() {
  const auto present = blobs_.List();
  if (!present.ok()) return present.status();
  for (const std::string& name : *present) {
    if (referenced_.contains(name)) continue;
    Finding& finding = Damage("ORPHAN_BLOB", name, "no record refers to it");
    finding.garbage = true;
    Remedy(finding, "removed", [this, name] { return blobs_.Delete(name); });
  }
  return absl::OkStatus();
}

// Its committed and its staging file, if they are there.
absl::Status Fsck::Quarantine(const std::string& blob) {
  const std::filesystem::path folder = directory_.path() + "/quarantine";
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat("create ", folder.string()));
  std::filesystem::permissions(folder, std::filesystem::perms::owner_all, error);
  for (const bool staging : {false, true}) {
    const auto file = BlobFile(directory_.blob_directory(), blob, staging);
    if (!file.ok()) return absl::OkStatus();  // a name that no store made: there is no file
    std::string name = absl::StrReplaceAll(blob, {{"/", "_"}});
    if (staging) absl::StrAppend(&name, ".partial");
    std::filesystem::rename(*file, folder / name, error);
    if (error && error != std::errc::no_such_file_or_directory) {
      return absl::ErrnoToStatus(error.value(), absl::StrCat("move ", *file));
    }
  }
  return absl::OkStatus();
}

// Files move first, then all records change at once: what a crash leaves in between is found and
// mended by the next repair.
absl::Status Fsck::Repair() {
  auto transaction = Transaction::Begin(*database_);
  if (!transaction.ok()) return transaction.status();
  for (const auto& [finding, change] : repairs_) {
    if (report_.findings[finding].garbage) continue;
    if (auto s = change(); !s.ok()) return s;
    report_.findings[finding].repaired = true;
  }
  for (const auto& [name, job] : changed_jobs_) {
    if (auto s = DeriveJob(job); !s.ok()) return s;
  }
  if (auto s = transaction->Commit("commit.update_job"); !s.ok()) return s;
  for (const auto& [finding, change] : repairs_) {
    if (!report_.findings[finding].garbage) continue;
    if (auto s = change(); !s.ok()) return s;
    report_.findings[finding].repaired = true;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<FsckReport> CheckDataDirectory(const std::string& path, bool repair) {
  if (!std::filesystem::exists(path + "/quantd.db")) {
    return absl::NotFoundError(absl::StrCat("data_dir '", path, "' has no database quantd.db"));
  }
  const auto directory = DataDirectory::Open(path);
  if (!directory.ok()) return directory.status();
  const auto blobs = OpenLocalBlobStore((*directory)->blob_directory());
  if (!blobs.ok()) return blobs.status();
  return Fsck(**directory, **blobs).Check(repair);
}

}  // namespace quantd::server
