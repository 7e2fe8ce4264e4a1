#include "server/store/sqlite_job_store.h"

#include <algorithm>
#include <limits>
#include <mutex>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/store/page_token.h"
#include "server/store/sqlite.h"
#include "server/store/sqlite_records.h"
#include "server/store/sqlite_schema.h"

namespace quantd::server {
namespace {

using sqlite::Query;
using sqlite::Transaction;

std::string JobName(absl::string_view tenant, absl::string_view job) {
  return absl::StrCat("tenants/", tenant, "/jobs/", job);
}

std::string StatisticName(absl::string_view tenant, absl::string_view statistic) {
  return absl::StrCat("tenants/", tenant, "/statistics/", statistic);
}

absl::Status NoSuch(absl::string_view name) {
  return absl::NotFoundError(absl::StrCat(name, " does not exist"));
}

absl::Status Exists(absl::string_view name) {
  return absl::AlreadyExistsError(absl::StrCat(name, " exists already"));
}

// The fields that `change` of UpdateJob must leave alone.
absl::Status CheckKeysKept(const JobRecord& before, const JobRecord& after) {
  bool kept = before.tenant == after.tenant && before.job_id == after.job_id &&
              before.layers.size() == after.layers.size();
  for (size_t i = 0; kept && i < before.layers.size(); ++i) {
    kept = before.layers[i].layer_id == after.layers[i].layer_id;
  }
  if (kept) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("an update of ", JobName(before.tenant, before.job_id), " changed keys"));
}

class SqliteJobStore final : public JobStore {
 public:
  explicit SqliteJobStore(std::unique_ptr<sqlite::Database> database)
      : database_(std::move(database)) {}

  absl::Status InsertJob(const JobRecord& job, int max_jobs) override;
  absl::StatusOr<JobRecord> GetJob(absl::string_view tenant, absl::string_view job) override;
  absl::StatusOr<JobRecord> FindJobByRequest(absl::string_view tenant,
                                             absl::string_view request_id) override;
  absl::StatusOr<Page<JobRecord>> ListJobs(absl::string_view tenant, int page_size,
                                           absl::string_view page_token) override;
  absl::StatusOr<std::vector<JobRecord>> UnfinishedJobs() override;
  absl::StatusOr<JobRecord> UpdateJob(
      absl::string_view tenant, absl::string_view job,
      absl::FunctionRef<absl::Status(JobRecord&, std::vector<ArtifactRecord>&)> change,
      const DeviceUse& use) override;
  absl::Status AddDeviceUse(absl::string_view tenant, const DeviceUse& use) override;
  absl::StatusOr<std::map<std::string, double>> DeviceSecondsOf(int64_t day) override;
  absl::Status SetUploadCommitted(absl::string_view tenant, absl::string_view job,
                                  absl::string_view layer, int64_t committed) override;
  absl::StatusOr<std::vector<std::string>> DeleteJob(absl::string_view tenant,
                                                     absl::string_view job) override;

  absl::StatusOr<ArtifactRecord> GetArtifact(absl::string_view tenant, absl::string_view job,
                                             absl::string_view artifact) override;
  absl::StatusOr<Page<ArtifactRecord>> ListArtifacts(absl::string_view tenant,
                                                     absl::string_view job, int page_size,
                                                     absl::string_view page_token) override;

  absl::Status InsertStatistic(const StatisticRecord& statistic, int max_statistics) override;
  absl::StatusOr<StatisticRecord> GetStatistic(absl::string_view tenant,
                                               absl::string_view statistic) override;
  absl::StatusOr<Page<StatisticRecord>> ListStatistics(absl::string_view tenant, int page_size,
                                                       absl::string_view page_token) override;
  absl::Status CommitStream(absl::string_view tenant, absl::string_view statistic,
                            const StatisticStreamRecord& stream) override;
  absl::Status SealStatistic(absl::string_view tenant, absl::string_view statistic, int64_t tokens,
                             absl::string_view digest, const BlobRef& moment) override;
  absl::StatusOr<std::vector<std::string>> DeleteStatistic(absl::string_view tenant,
                                                           absl::string_view statistic) override;

  absl::StatusOr<std::vector<JobKey>> JobsEndedBefore(absl::Time time, int limit) override;
  absl::StatusOr<std::vector<StatisticRecord>> UnusedStatistics(absl::Time created_before,
                                                                int limit) override;
  absl::StatusOr<std::map<std::string, Counts>> CountByTenant() override;
  absl::StatusOr<std::vector<std::string>> ReferencedBlobs() override;

 private:
  // All of these need mutex_.
  absl::StatusOr<JobRecord> LoadJob(absl::string_view tenant, absl::string_view job);
  absl::Status LoadLayers(JobRecord& job, sqlite::RecipeReader& recipes);
  absl::Status InsertLayer(const JobRecord& job, size_t position);
  // Whether the weights that a new job takes from other layers are still theirs.
  absl::Status CheckSources(const JobRecord& job);
  absl::Status WriteJob(const JobRecord& before, const JobRecord& after);
  absl::Status WriteLayer(const JobRecord& job, size_t position);
  absl::Status WriteDeviceUse(absl::string_view tenant, const DeviceUse& use);
  absl::Status InsertArtifact(const JobRecord& job, const ArtifactRecord& artifact);
  absl::Status LoadStreams(StatisticRecord& statistic);
  absl::Status WriteStream(absl::string_view tenant, absl::string_view statistic,
                           const StatisticStreamRecord& stream);
  absl::StatusOr<StatisticRecord> LoadStatistic(absl::string_view tenant,
                                                absl::string_view statistic);
  // The first column of the rows of `sql`, whose parameters are the two texts (if any).
  absl::StatusOr<std::vector<std::string>> Texts(const char* sql,
                                                 std::initializer_list<absl::string_view> keys);
  absl::StatusOr<int64_t> Count(const char* sql, std::initializer_list<absl::string_view> keys);
  // Those of `names` that no record refers to.
  absl::StatusOr<std::vector<std::string>> Unreferenced(std::vector<std::string> names);

  std::mutex mutex_;
  std::unique_ptr<sqlite::Database> database_;
};

absl::StatusOr<std::vector<std::string>> SqliteJobStore::Texts(
    const char* sql, std::initializer_list<absl::string_view> keys) {
  auto query = database_->Prepare(sql);
  if (!query.ok()) return query.status();
  for (absl::string_view key : keys) query->Bind(key);
  std::vector<std::string> texts;
  while (true) {
    auto row = query->Step();
    if (!row.ok()) return row.status();
    if (!*row) return texts;
    texts.push_back(query->Text(0));
  }
}

absl::StatusOr<int64_t> SqliteJobStore::Count(const char* sql,
                                              std::initializer_list<absl::string_view> keys) {
  auto query = database_->Prepare(sql);
  if (!query.ok()) return query.status();
  for (absl::string_view key : keys) query->Bind(key);
  auto row = query->Step();
  if (!row.ok()) return row.status();
  return *row ? query->Int(0) : 0;
}

absl::StatusOr<std::vector<std::string>> SqliteJobStore::Unreferenced(
    std::vector<std::string> names) {
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  std::vector<std::string> free;
  for (std::string& name : names) {
    auto uses = Count(
        "SELECT EXISTS (SELECT 1 FROM layers WHERE weight_name = ?1)"
        " OR EXISTS (SELECT 1 FROM layers WHERE upload_staging = ?1)"
        " OR EXISTS (SELECT 1 FROM artifacts WHERE blob_name = ?1)"
        " OR EXISTS (SELECT 1 FROM statistics WHERE moment_name = ?1)"
        " OR EXISTS (SELECT 1 FROM statistic_streams WHERE snapshot_name = ?1)",
        {name});
    if (!uses.ok()) return uses.status();
    if (*uses == 0) free.push_back(std::move(name));
  }
  return free;
}

// ---- jobs

absl::Status SqliteJobStore::LoadLayers(JobRecord& job, sqlite::RecipeReader& recipes) {
  auto query = database_->Prepare(
      absl::StrCat("SELECT ", sqlite::kLayerColumns,
                   " FROM layers WHERE tenant = ? AND job_id = ? ORDER BY position"));
  if (!query.ok()) return query.status();
  query->Bind(job.tenant).Bind(job.job_id);
  while (true) {
    auto row = query->Step();
    if (!row.ok()) return row.status();
    if (!*row) return absl::OkStatus();
    auto layer = sqlite::ReadLayer(*query, job.recipe, recipes);
    if (!layer.ok()) {
      return absl::DataLossError(
          absl::StrCat(JobName(job.tenant, job.job_id), ": ", layer.status().message()));
    }
    job.layers.push_back(*std::move(layer));
  }
}

absl::StatusOr<JobRecord> SqliteJobStore::LoadJob(absl::string_view tenant, absl::string_view job) {
  auto query = database_->Prepare(
      absl::StrCat("SELECT ", sqlite::kJobColumns, " FROM jobs WHERE tenant = ? AND job_id = ?"));
  if (!query.ok()) return query.status();
  auto row = query->Bind(tenant).Bind(job).Step();
  if (!row.ok()) return row.status();
  if (!*row) return NoSuch(JobName(tenant, job));
  sqlite::RecipeReader recipes;
  auto record = sqlite::ReadJob(*query, recipes);
  if (!record.ok()) return record;
  if (auto s = LoadLayers(*record, recipes); !s.ok()) return s;
  return record;
}

absl::Status SqliteJobStore::InsertLayer(const JobRecord& job, size_t position) {
  auto query = database_->Prepare(
      "INSERT INTO layers (tenant, job_id, position, layer_id, rows, cols, dtype, fusion_group,"
      " statistic_id, recipe, has_own_recipe, state, error, device_seconds, upload_committed,"
      " upload_staging, weight_name, weight_size, weight_sha256, second_moment_hat_id,"
      " cross_moment_id, residual_moment_id, weight_of)"
      " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
  if (!query.ok()) return query.status();
  query->Bind(job.tenant).Bind(job.job_id).Bind(static_cast<int64_t>(position));
  sqlite::BindLayer(*query, job.layers[position], job.recipe);
  absl::Status status = query->Run();
  if (absl::IsAlreadyExists(status)) {
    return Exists(
        absl::StrCat(JobName(job.tenant, job.job_id), "/layers/", job.layers[position].layer_id));
  }
  return status;
}

absl::Status SqliteJobStore::CheckSources(const JobRecord& job) {
  for (const LayerRecord& layer : job.layers) {
    if (layer.weight_of.empty()) continue;
    const auto users =
        Count("SELECT EXISTS (SELECT 1 FROM layers WHERE weight_name = ?)", {layer.weight.name});
    if (!users.ok()) return users.status();
    if (*users > 0) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("the weight of ", layer.weight_of, " is gone: its job has been deleted"));
  }
  return absl::OkStatus();
}

absl::Status SqliteJobStore::InsertJob(const JobRecord& job, int max_jobs) {
  std::lock_guard lock(mutex_);
  auto transaction = Transaction::Begin(*database_);
  if (!transaction.ok()) return transaction.status();

  const auto same_id =
      Count("SELECT count(*) FROM jobs WHERE tenant = ? AND job_id = ?", {job.tenant, job.job_id});
  if (!same_id.ok()) return same_id.status();
  if (*same_id > 0) return Exists(JobName(job.tenant, job.job_id));
  const auto stored = Count("SELECT count(*) FROM jobs WHERE tenant = ?", {job.tenant});
  if (!stored.ok()) return stored.status();
  if (*stored >= max_jobs) {
    return absl::ResourceExhaustedError(absl::StrCat("tenants/", job.tenant, " stores ", *stored,
                                                     " jobs, the limit is ", max_jobs,
                                                     "; delete some first"));
  }

  {
    auto query = database_->Prepare(
        "INSERT INTO jobs (tenant, job_id, display_name, request_id, recipe, create_time_us,"
        " end_time_us, state, finished_layers, priority, deadline_us)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
    if (!query.ok()) return query.status();
    query->Bind(job.tenant)
        .Bind(job.job_id)
        .Bind(job.display_name)
        .BindOrNull(job.request_id)
        .Bind(compute::ToJson(job.recipe))
        .Bind(absl::ToUnixMicros(job.create_time));
    sqlite::BindOptionalTime(*query, job.end_time);
    query->Bind(sqlite::NameOf(job.state))
        .Bind(int64_t{job.finished_layers})
        .Bind(sqlite::NameOf(job.priority));
    sqlite::BindOptionalTime(*query, job.deadline);
    absl::Status status = query->Run();
    if (absl::IsAlreadyExists(status)) {
      return Exists(
          absl::StrCat("a job of tenants/", job.tenant, " for request_id '", job.request_id, "'"));
    }
    if (!status.ok()) return status;
  }
  if (auto s = CheckSources(job); !s.ok()) return s;
  for (size_t i = 0; i < job.layers.size(); ++i) {
    if (auto s = InsertLayer(job, i); !s.ok()) return s;
  }
  return transaction->Commit("commit.insert_job");
}

absl::StatusOr<JobRecord> SqliteJobStore::GetJob(absl::string_view tenant, absl::string_view job) {
  std::lock_guard lock(mutex_);
  if (!database_->health().ok()) return database_->health();
  return LoadJob(tenant, job);
}

absl::StatusOr<JobRecord> SqliteJobStore::FindJobByRequest(absl::string_view tenant,
                                                           absl::string_view request_id) {
  std::lock_guard lock(mutex_);
  if (!database_->health().ok()) return database_->health();
  auto ids =
      Texts("SELECT job_id FROM jobs WHERE tenant = ? AND request_id = ?", {tenant, request_id});
  if (!ids.ok()) return ids.status();
  if (ids->empty()) {
    return NoSuch(absl::StrCat("a job of tenants/", tenant, " for request_id '", request_id, "'"));
  }
  return LoadJob(tenant, ids->front());
}

// A list, newest first: reads one item more than asked for, which says whether there is a next
// page.
template <typename T, typename ReadItem, typename EndOf>
absl::StatusOr<Page<T>> ReadPage(Query& query, int page_size, absl::string_view scope,
                                 ReadItem read_item, EndOf end_of) {
  Page<T> page;
  while (true) {
    auto row = query.Step();
    if (!row.ok()) return row.status();
    if (!*row) return page;
    if (page.items.size() == static_cast<size_t>(page_size)) {
      page.next_token = MakePageToken(scope, end_of(page.items.back()));
      return page;
    }
    absl::StatusOr<T> item = read_item(query);
    if (!item.ok()) return item.status();
    page.items.push_back(*std::move(item));
  }
}

// Binds where the page starts (without a token: before everything) and how much is read.
absl::Status BindPage(Query& query, int page_size, absl::string_view scope,
                      absl::string_view page_token) {
  if (page_size < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("page_size: expected at least 1, got ", page_size));
  }
  PageEnd end{.time_us = std::numeric_limits<int64_t>::max(), .id = ""};
  if (!page_token.empty()) {
    auto parsed = ParsePageToken(scope, page_token);
    if (!parsed.ok()) return parsed.status();
    end = *std::move(parsed);
  }
  query.Bind(end.time_us).Bind(end.id).Bind(int64_t{page_size} + 1);
  return absl::OkStatus();
}

absl::StatusOr<Page<JobRecord>> SqliteJobStore::ListJobs(absl::string_view tenant, int page_size,
                                                         absl::string_view page_token) {
  std::lock_guard lock(mutex_);
  if (!database_->health().ok()) return database_->health();
  auto query =
      database_->Prepare(absl::StrCat("SELECT ", sqlite::kJobColumns,
                                      " FROM jobs WHERE tenant = ? AND (create_time_us, job_id) < "
                                      "(?, ?) ORDER BY create_time_us DESC, job_id DESC LIMIT ?"));
  if (!query.ok()) return query.status();
  const std::string scope = absl::StrCat("jobs/", tenant);
  query->Bind(tenant);
  if (auto s = BindPage(*query, page_size, scope, page_token); !s.ok()) return s;
  sqlite::RecipeReader recipes;
  return ReadPage<JobRecord>(
      *query, page_size, scope, [&](Query& row) { return sqlite::ReadJob(row, recipes); },
      [](const JobRecord& job) {
        return PageEnd{absl::ToUnixMicros(job.create_time), job.job_id};
      });
}

absl::StatusOr<std::vector<JobRecord>> SqliteJobStore::UnfinishedJobs() {
  std::lock_guard lock(mutex_);
  if (!database_->health().ok()) return database_->health();
  auto query =
      database_->Prepare(absl::StrCat("SELECT ", sqlite::kJobColumns,
                                      " FROM jobs WHERE state NOT IN ('succeeded', 'failed', "
                                      "'cancelled') ORDER BY create_time_us, tenant, job_id"));
  if (!query.ok()) return query.status();
  std::vector<JobRecord> jobs;
  sqlite::RecipeReader recipes;
  while (true) {
    auto row = query->Step();
    if (!row.ok()) return row.status();
    if (!*row) return jobs;
    auto job = sqlite::ReadJob(*query, recipes);
    if (!job.ok()) return job.status();
    if (auto s = LoadLayers(*job, recipes); !s.ok()) return s;
    jobs.push_back(*std::move(job));
  }
}

absl::Status SqliteJobStore::WriteLayer(const JobRecord& job, size_t position) {
  auto query = database_->Prepare(
      "UPDATE layers SET layer_id = ?, rows = ?, cols = ?, dtype = ?, fusion_group = ?,"
      " statistic_id = ?, recipe = ?, has_own_recipe = ?, state = ?, error = ?, device_seconds = ?,"
      " upload_committed = ?, upload_staging = ?, weight_name = ?, weight_size = ?,"
      " weight_sha256 = ?, second_moment_hat_id = ?, cross_moment_id = ?, residual_moment_id = ?,"
      " weight_of = ? WHERE tenant = ? AND job_id = ? AND position = ?");
  if (!query.ok()) return query.status();
  sqlite::BindLayer(*query, job.layers[position], job.recipe);
  return query->Bind(job.tenant).Bind(job.job_id).Bind(static_cast<int64_t>(position)).Run();
}

absl::Status SqliteJobStore::WriteJob(const JobRecord& before, const JobRecord& after) {
  if (before.state != after.state || before.end_time != after.end_time ||
      before.finished_layers != after.finished_layers) {
    auto query = database_->Prepare(
        "UPDATE jobs SET end_time_us = ?, state = ?, finished_layers = ?"
        " WHERE tenant = ? AND job_id = ?");
    if (!query.ok()) return query.status();
    sqlite::BindOptionalTime(*query, after.end_time);
    query->Bind(sqlite::NameOf(after.state)).Bind(int64_t{after.finished_layers});
    if (auto s = query->Bind(after.tenant).Bind(after.job_id).Run(); !s.ok()) return s;
  }
  for (size_t i = 0; i < after.layers.size(); ++i) {
    if (before.layers[i] == after.layers[i]) continue;
    if (auto s = WriteLayer(after, i); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status SqliteJobStore::InsertArtifact(const JobRecord& job, const ArtifactRecord& artifact) {
  auto query = database_->Prepare(
      "INSERT INTO artifacts (tenant, job_id, artifact_id, layer_id, blob_name, blob_size,"
      " blob_sha256, create_time_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?)");
  if (!query.ok()) return query.status();
  query->Bind(job.tenant).Bind(job.job_id).Bind(artifact.artifact_id).Bind(artifact.layer_id);
  sqlite::BindBlobRef(*query, artifact.blob);
  absl::Status status = query->Bind(absl::ToUnixMicros(artifact.create_time)).Run();
  if (absl::IsAlreadyExists(status)) {
    return Exists(
        absl::StrCat(JobName(job.tenant, job.job_id), "/artifacts/", artifact.artifact_id));
  }
  return status;
}

absl::StatusOr<JobRecord> SqliteJobStore::UpdateJob(
    absl::string_view tenant, absl::string_view job,
    absl::FunctionRef<absl::Status(JobRecord&, std::vector<ArtifactRecord>&)> change,
    const DeviceUse& use) {
  std::lock_guard lock(mutex_);
  auto transaction = Transaction::Begin(*database_);
  if (!transaction.ok()) return transaction.status();
  const auto before = LoadJob(tenant, job);
  if (!before.ok()) return before.status();

  JobRecord after = *before;
  std::vector<ArtifactRecord> artifacts;
  if (auto s = change(after, artifacts); !s.ok()) return s;
  if (auto s = CheckKeysKept(*before, after); !s.ok()) return s;
  if (auto s = WriteJob(*before, after); !s.ok()) return s;
  for (const ArtifactRecord& artifact : artifacts) {
    if (auto s = InsertArtifact(after, artifact); !s.ok()) return s;
  }
  if (auto s = WriteDeviceUse(tenant, use); !s.ok()) return s;
  if (auto s = transaction->Commit("commit.update_job"); !s.ok()) return s;
  return after;
}

absl::Status SqliteJobStore::WriteDeviceUse(absl::string_view tenant, const DeviceUse& use) {
  if (use.seconds <= 0) return absl::OkStatus();
  auto query = database_->Prepare(
      "INSERT INTO device_use (tenant, day, seconds) VALUES (?, ?, ?)"
      " ON CONFLICT DO UPDATE SET seconds = seconds + excluded.seconds");
  if (!query.ok()) return query.status();
  return query->Bind(tenant).Bind(use.day).Bind(use.seconds).Run();
}

absl::Status SqliteJobStore::AddDeviceUse(absl::string_view tenant, const DeviceUse& use) {
  std::lock_guard lock(mutex_);
  auto transaction = Transaction::Begin(*database_);
  if (!transaction.ok()) return transaction.status();
  if (auto s = WriteDeviceUse(tenant, use); !s.ok()) return s;
  return transaction->Commit("commit.update_job");
}

absl::StatusOr<std::map<std::string, double>> SqliteJobStore::DeviceSecondsOf(int64_t day) {
  std::lock_guard lock(mutex_);
  if (!database_->health().ok()) return database_->health();
  auto query = database_->Prepare("SELECT tenant, seconds FROM device_use WHERE day = ?");
  if (!query.ok()) return query.status();
  query->Bind(day);
  std::map<std::string, double> seconds;
  while (true) {
    auto row = query->Step();
    if (!row.ok()) return row.status();
    if (!*row) return seconds;
    seconds[query->Text(0)] = query->Double(1);
  }
}

absl::Status SqliteJobStore::SetUploadCommitted(absl::string_view tenant, absl::string_view job,
                                                absl::string_view layer, int64_t committed) {
  std::lock_guard lock(mutex_);
  auto transaction = Transaction::Begin(*database_);
  if (!transaction.ok()) return transaction.status();
  bool found;
  {
    auto query = database_->Prepare(
        "UPDATE layers SET upload_committed = ? WHERE tenant = ? AND job_id = ? AND layer_id = ?"
        " RETURNING 1");
    if (!query.ok()) return query.status();
    auto row = query->Bind(committed).Bind(tenant).Bind(job).Bind(layer).Step();
    if (!row.ok()) return row.status();
    found = *row;
  }
  if (!found) return NoSuch(absl::StrCat(JobName(tenant, job), "/layers/", layer));
  return transaction->Commit("commit.upload");
}

absl::StatusOr<std::vector<std::string>> SqliteJobStore::DeleteJob(absl::string_view tenant,
                                                                   absl::string_view job) {
  std::lock_guard lock(mutex_);
  auto transaction = Transaction::Begin(*database_);
  if (!transaction.ok()) return transaction.status();
  auto names = Texts(
      "SELECT weight_name FROM layers WHERE tenant = ?1 AND job_id = ?2 AND weight_name NOT NULL"
      " UNION SELECT upload_staging FROM layers"
      " WHERE tenant = ?1 AND job_id = ?2 AND upload_staging NOT NULL"
      " UNION SELECT blob_name FROM artifacts"
      " WHERE tenant = ?1 AND job_id = ?2 AND blob_name NOT NULL",
      {tenant, job});
  if (!names.ok()) return names;
  auto deleted =
      Texts("DELETE FROM jobs WHERE tenant = ? AND job_id = ? RETURNING job_id", {tenant, job});
  if (!deleted.ok()) return deleted;
  if (deleted->empty()) return NoSuch(JobName(tenant, job));
  names = Unreferenced(*std::move(names));
  if (!names.ok()) return names;
  if (auto s = transaction->Commit("commit.delete_job"); !s.ok()) return s;
  return names;
}

// ---- artifacts

absl::StatusOr<ArtifactRecord> SqliteJobStore::GetArtifact(absl::string_view tenant,
                                                           absl::string_view job,
                                                           absl::string_view artifact) {
  std::lock_guard lock(mutex_);
  if (!database_->health().ok()) return database_->health();
  auto query = database_->Prepare(
      absl::StrCat("SELECT ", sqlite::kArtifactColumns,
                   " FROM artifacts WHERE tenant = ? AND job_id = ? AND artifact_id = ?"));
  if (!query.ok()) return query.status();
  auto row = query->Bind(tenant).Bind(job).Bind(artifact).Step();
  if (!row.ok()) return row.status();
  if (!*row) return NoSuch(absl::StrCat(JobName(tenant, job), "/artifacts/", artifact));
  return sqlite::ReadArtifact(*query);
}

absl::StatusOr<Page<ArtifactRecord>> SqliteJobStore::ListArtifacts(absl::string_view tenant,
                                                                   absl::string_view job,
                                                                   int page_size,
                                                                   absl::string_view page_token) {
  std::lock_guard lock(mutex_);
  if (!database_->health().ok()) return database_->health();
  const auto jobs =
      Count("SELECT count(*) FROM jobs WHERE tenant = ? AND job_id = ?", {tenant, job});
  if (!jobs.ok()) return jobs.status();
  if (*jobs == 0) return NoSuch(JobName(tenant, job));
  auto query = database_->Prepare(
      absl::StrCat("SELECT ", sqlite::kArtifactColumns,
                   " FROM artifacts WHERE tenant = ? AND job_id = ? AND (create_time_us, "
                   "artifact_id) < (?, ?) ORDER BY create_time_us DESC, artifact_id DESC LIMIT ?"));
  if (!query.ok()) return query.status();
  const std::string scope = absl::StrCat("artifacts/", tenant, "/", job);
  query->Bind(tenant).Bind(job);
  if (auto s = BindPage(*query, page_size, scope, page_token); !s.ok()) return s;
  return ReadPage<ArtifactRecord>(
      *query, page_size, scope,
      [](Query& row) -> absl::StatusOr<ArtifactRecord> { return sqlite::ReadArtifact(row); },
      [](const ArtifactRecord& artifact) {
        return PageEnd{absl::ToUnixMicros(artifact.create_time), artifact.artifact_id};
      });
}

// ---- statistics

absl::Status SqliteJobStore::LoadStreams(StatisticRecord& statistic) {
  auto query = database_->Prepare(absl::StrCat(
      "SELECT ", sqlite::kStreamColumns,
      " FROM statistic_streams WHERE tenant = ? AND statistic_id = ? ORDER BY stream_id"));
  if (!query.ok()) return query.status();
  query->Bind(statistic.tenant).Bind(statistic.statistic_id);
  while (true) {
    auto row = query->Step();
    if (!row.ok()) return row.status();
    if (!*row) return absl::OkStatus();
    auto stream = sqlite::ReadStream(*query);
    if (!stream.ok()) {
      return absl::DataLossError(
          absl::StrCat(StatisticName(statistic.tenant, statistic.statistic_id), ": ",
                       stream.status().message()));
    }
    statistic.streams.push_back(*std::move(stream));
  }
}

absl::StatusOr<StatisticRecord> SqliteJobStore::LoadStatistic(absl::string_view tenant,
                                                              absl::string_view statistic) {
  auto query =
      database_->Prepare(absl::StrCat("SELECT ", sqlite::kStatisticColumns,
                                      " FROM statistics WHERE tenant = ? AND statistic_id = ?"));
  if (!query.ok()) return query.status();
  auto row = query->Bind(tenant).Bind(statistic).Step();
  if (!row.ok()) return row.status();
  if (!*row) return NoSuch(StatisticName(tenant, statistic));
  auto record = sqlite::ReadStatistic(*query);
  if (!record.ok()) return record;
  if (auto s = LoadStreams(*record); !s.ok()) return s;
  return record;
}

absl::Status SqliteJobStore::WriteStream(absl::string_view tenant, absl::string_view statistic,
                                         const StatisticStreamRecord& stream) {
  auto query = database_->Prepare(
      "REPLACE INTO statistic_streams (tenant, statistic_id, stream_id, dtype, durable_seq, tokens,"
      " snapshot_name, snapshot_size, snapshot_sha256, recent_crcs)"
      " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
  if (!query.ok()) return query.status();
  query->Bind(tenant).Bind(statistic);
  sqlite::BindStream(*query, stream);
  return query->Run();
}

absl::Status SqliteJobStore::InsertStatistic(const StatisticRecord& statistic, int max_statistics) {
  std::lock_guard lock(mutex_);
  auto transaction = Transaction::Begin(*database_);
  if (!transaction.ok()) return transaction.status();
  const auto same_id =
      Count("SELECT count(*) FROM statistics WHERE tenant = ? AND statistic_id = ?",
            {statistic.tenant, statistic.statistic_id});
  if (!same_id.ok()) return same_id.status();
  if (*same_id > 0) return Exists(StatisticName(statistic.tenant, statistic.statistic_id));
  const auto stored = Count("SELECT count(*) FROM statistics WHERE tenant = ?", {statistic.tenant});
  if (!stored.ok()) return stored.status();
  if (*stored >= max_statistics) {
    return absl::ResourceExhaustedError(absl::StrCat("tenants/", statistic.tenant, " stores ",
                                                     *stored, " statistics, the limit is ",
                                                     max_statistics, "; delete some first"));
  }
  {
    auto query = database_->Prepare(
        "INSERT INTO statistics (tenant, statistic_id, layout, block_size, cols, sample_rows,"
        " sample_seed, sealed, tokens, digest, moment_name, moment_size, moment_sha256,"
        " create_time_us, kind, paired_cols)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
    if (!query.ok()) return query.status();
    sqlite::BindStatistic(*query, statistic);
    if (auto s = query->Run(); !s.ok()) return s;
  }
  for (const StatisticStreamRecord& stream : statistic.streams) {
    if (auto s = WriteStream(statistic.tenant, statistic.statistic_id, stream); !s.ok()) return s;
  }
  return transaction->Commit("commit.insert_statistic");
}

absl::StatusOr<StatisticRecord> SqliteJobStore::GetStatistic(absl::string_view tenant,
                                                             absl::string_view statistic) {
  std::lock_guard lock(mutex_);
  if (!database_->health().ok()) return database_->health();
  return LoadStatistic(tenant, statistic);
}

absl::StatusOr<Page<StatisticRecord>> SqliteJobStore::ListStatistics(absl::string_view tenant,
                                                                     int page_size,
                                                                     absl::string_view page_token) {
  std::lock_guard lock(mutex_);
  if (!database_->health().ok()) return database_->health();
  auto query = database_->Prepare(
      absl::StrCat("SELECT ", sqlite::kStatisticColumns,
                   " FROM statistics WHERE tenant = ? AND (create_time_us, statistic_id) < (?, ?) "
                   "ORDER BY create_time_us DESC, statistic_id DESC LIMIT ?"));
  if (!query.ok()) return query.status();
  const std::string scope = absl::StrCat("statistics/", tenant);
  query->Bind(tenant);
  if (auto s = BindPage(*query, page_size, scope, page_token); !s.ok()) return s;
  return ReadPage<StatisticRecord>(
      *query, page_size, scope,
      [&](Query& row) -> absl::StatusOr<StatisticRecord> {
        auto statistic = sqlite::ReadStatistic(row);
        if (!statistic.ok()) return statistic;
        if (auto s = LoadStreams(*statistic); !s.ok()) return s;
        return statistic;
      },
      [](const StatisticRecord& statistic) {
        return PageEnd{absl::ToUnixMicros(statistic.create_time), statistic.statistic_id};
      });
}

absl::Status SqliteJobStore::CommitStream(absl::string_view tenant, absl::string_view statistic,
                                          const StatisticStreamRecord& stream) {
  std::lock_guard lock(mutex_);
  auto transaction = Transaction::Begin(*database_);
  if (!transaction.ok()) return transaction.status();
  const std::string name = StatisticName(tenant, statistic);
  const auto sealed = Texts("SELECT sealed FROM statistics WHERE tenant = ? AND statistic_id = ?",
                            {tenant, statistic});
  if (!sealed.ok()) return sealed.status();
  if (sealed->empty()) return NoSuch(name);
  if (sealed->front() != "0") {
    return absl::FailedPreconditionError(absl::StrCat(name, " is sealed, nothing can be added"));
  }
  const auto durable_seq = Count(
      "SELECT durable_seq FROM statistic_streams"
      " WHERE tenant = ? AND statistic_id = ? AND stream_id = ?",
      {tenant, statistic, stream.stream_id});
  if (!durable_seq.ok()) return durable_seq.status();
  if (stream.durable_seq < *durable_seq) {
    return absl::FailedPreconditionError(
        absl::StrCat("stream '", stream.stream_id, "' of ", name, ": seq ", *durable_seq,
                     " is durable, it cannot go back to ", stream.durable_seq));
  }
  if (auto s = WriteStream(tenant, statistic, stream); !s.ok()) return s;
  return transaction->Commit("commit.stream");
}

absl::Status SqliteJobStore::SealStatistic(absl::string_view tenant, absl::string_view statistic,
                                           int64_t tokens, absl::string_view digest,
                                           const BlobRef& moment) {
  std::lock_guard lock(mutex_);
  auto transaction = Transaction::Begin(*database_);
  if (!transaction.ok()) return transaction.status();
  const std::string name = StatisticName(tenant, statistic);
  const auto sealed = Texts("SELECT sealed FROM statistics WHERE tenant = ? AND statistic_id = ?",
                            {tenant, statistic});
  if (!sealed.ok()) return sealed.status();
  if (sealed->empty()) return NoSuch(name);
  if (sealed->front() != "0") {
    return absl::FailedPreconditionError(absl::StrCat(name, " is sealed already"));
  }
  {
    auto query = database_->Prepare(
        "UPDATE statistics SET sealed = 1, tokens = ?, digest = ?, moment_name = ?,"
        " moment_size = ?, moment_sha256 = ? WHERE tenant = ? AND statistic_id = ?");
    if (!query.ok()) return query.status();
    query->Bind(tokens).Bind(digest);
    sqlite::BindBlobRef(*query, moment);
    if (auto s = query->Bind(tenant).Bind(statistic).Run(); !s.ok()) return s;
  }
  auto dropped = Texts(
      "UPDATE statistic_streams SET snapshot_name = NULL, snapshot_size = 0, snapshot_sha256 = x''"
      " WHERE tenant = ? AND statistic_id = ? RETURNING stream_id",
      {tenant, statistic});
  if (!dropped.ok()) return dropped.status();
  return transaction->Commit("commit.seal_statistic");
}

absl::StatusOr<std::vector<std::string>> SqliteJobStore::DeleteStatistic(
    absl::string_view tenant, absl::string_view statistic) {
  std::lock_guard lock(mutex_);
  auto transaction = Transaction::Begin(*database_);
  if (!transaction.ok()) return transaction.status();
  const std::string name = StatisticName(tenant, statistic);
  auto users = Texts(
      "SELECT job_id FROM jobs WHERE tenant = ?1"
      " AND state NOT IN ('succeeded', 'failed', 'cancelled') AND job_id IN"
      " (SELECT job_id FROM layers WHERE tenant = ?1 AND statistic_id = ?2"
      "  UNION ALL SELECT job_id FROM layers WHERE tenant = ?1 AND second_moment_hat_id = ?2"
      "  UNION ALL SELECT job_id FROM layers WHERE tenant = ?1 AND cross_moment_id = ?2"
      "  UNION ALL SELECT job_id FROM layers WHERE tenant = ?1 AND residual_moment_id = ?2)"
      " LIMIT 1",
      {tenant, statistic});
  if (!users.ok()) return users;
  auto names = Texts(
      "SELECT moment_name FROM statistics"
      " WHERE tenant = ?1 AND statistic_id = ?2 AND moment_name NOT NULL"
      " UNION SELECT snapshot_name FROM statistic_streams"
      " WHERE tenant = ?1 AND statistic_id = ?2 AND snapshot_name NOT NULL",
      {tenant, statistic});
  if (!names.ok()) return names;
  auto deleted =
      Texts("DELETE FROM statistics WHERE tenant = ? AND statistic_id = ? RETURNING statistic_id",
            {tenant, statistic});
  if (!deleted.ok()) return deleted;
  if (deleted->empty()) return NoSuch(name);
  if (!users->empty()) {
    return absl::FailedPreconditionError(absl::StrCat(name, " is used by ",
                                                      JobName(tenant, users->front()),
                                                      ", which has not ended; cancel that first"));
  }
  names = Unreferenced(*std::move(names));
  if (!names.ok()) return names;
  if (auto s = transaction->Commit("commit.delete_statistic"); !s.ok()) return s;
  return names;
}

// ---- retention

absl::StatusOr<std::vector<JobKey>> SqliteJobStore::JobsEndedBefore(absl::Time time, int limit) {
  std::lock_guard lock(mutex_);
  if (!database_->health().ok()) return database_->health();
  auto query = database_->Prepare(
      "SELECT tenant, job_id FROM jobs WHERE end_time_us < ? ORDER BY end_time_us LIMIT ?");
  if (!query.ok()) return query.status();
  query->Bind(absl::ToUnixMicros(time)).Bind(int64_t{limit});
  std::vector<JobKey> jobs;
  while (true) {
    auto row = query->Step();
    if (!row.ok()) return row.status();
    if (!*row) return jobs;
    jobs.push_back({.tenant = query->Text(0), .job_id = query->Text(1)});
  }
}

absl::StatusOr<std::vector<StatisticRecord>> SqliteJobStore::UnusedStatistics(
    absl::Time created_before, int limit) {
  std::lock_guard lock(mutex_);
  if (!database_->health().ok()) return database_->health();
  auto query = database_->Prepare(absl::StrCat(
      "SELECT ", sqlite::kStatisticColumns,
      " FROM statistics AS s WHERE create_time_us < ? AND NOT EXISTS (SELECT 1 FROM layers WHERE "
      "tenant = s.tenant  AND statistic_id = s.statistic_id) AND NOT EXISTS (SELECT 1 FROM layers "
      "WHERE tenant = s.tenant  AND second_moment_hat_id = s.statistic_id) AND NOT EXISTS (SELECT "
      "1 FROM layers WHERE tenant = s.tenant  AND cross_moment_id = s.statistic_id) AND NOT EXISTS "
      "(SELECT 1 FROM layers WHERE tenant = s.tenant  AND residual_moment_id = s.statistic_id) "
      "ORDER BY create_time_us LIMIT ?"));
  if (!query.ok()) return query.status();
  query->Bind(absl::ToUnixMicros(created_before)).Bind(int64_t{limit});
  std::vector<StatisticRecord> statistics;
  while (true) {
    auto row = query->Step();
    if (!row.ok()) return row.status();
    if (!*row) return statistics;
    auto statistic = sqlite::ReadStatistic(*query);
    if (!statistic.ok()) return statistic.status();
    if (auto s = LoadStreams(*statistic); !s.ok()) return s;
    statistics.push_back(*std::move(statistic));
  }
}

absl::StatusOr<std::vector<std::string>> SqliteJobStore::ReferencedBlobs() {
  std::lock_guard lock(mutex_);
  if (!database_->health().ok()) return database_->health();
  return Texts(
      "SELECT weight_name FROM layers WHERE weight_name NOT NULL"
      " UNION SELECT upload_staging FROM layers WHERE upload_staging NOT NULL"
      " UNION SELECT blob_name FROM artifacts WHERE blob_name NOT NULL"
      " UNION SELECT moment_name FROM statistics WHERE moment_name NOT NULL"
      " UNION SELECT snapshot_name FROM statistic_streams WHERE snapshot_name NOT NULL",
      {});
}

absl::StatusOr<std::map<std::string, JobStore::Counts>> SqliteJobStore::CountByTenant() {
  std::lock_guard lock(mutex_);
  std::map<std::string, Counts> counts;
  const std::pair<const char*, int64_t Counts::*> kinds[] = {
      {"SELECT tenant, count(*) FROM jobs GROUP BY tenant", &Counts::jobs},
      {"SELECT tenant, count(*) FROM statistics GROUP BY tenant", &Counts::statistics}};
  for (const auto& [sql, member] : kinds) {
    auto query = database_->Prepare(sql);
    if (!query.ok()) return query.status();
    for (;;) {
      const auto row = query->Step();
      if (!row.ok()) return row.status();
      if (!*row) break;
      counts[query->Text(0)].*member = query->Int(1);
    }
  }
  return counts;
}

}  // namespace

absl::StatusOr<std::unique_ptr<JobStore>> OpenSqliteJobStore(const std::string& path,
                                                             SqliteJobStoreOptions options) {
  auto database = sqlite::Database::Open(path, options.max_bytes);
  if (!database.ok()) return database.status();
  if (auto s = sqlite::PrepareSchema(**database); !s.ok()) {
    return absl::Status(s.code(), absl::StrCat(path, ": ", s.message()));
  }
  return std::make_unique<SqliteJobStore>(*std::move(database));
}

}  // namespace quantd::server
