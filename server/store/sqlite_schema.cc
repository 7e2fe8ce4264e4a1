#include "server/store/sqlite_schema.h"

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace quantd::server::sqlite {
namespace {

constexpr int64_t kApplicationId = 0x716e7464;  // "qntd"
constexpr int64_t kVersion = 3;

// Times are microseconds since 1970. A blob is three columns: name (NULL: none), size, SHA-256.
// A NULL recipe of a layer is its job's. Enumerations are stored by name, errors and recipes as
// JSON, so that the file can be read with the sqlite3 shell.
// The partial indexes on blob names answer "does anything still refer to it?".
// Version 1. A new file gets it and then the same steps as an old one, so that both end up equal.
constexpr char kTables[] = R"sql(
CREATE TABLE jobs (
  tenant TEXT NOT NULL,
  job_id TEXT NOT NULL,
  display_name TEXT NOT NULL,
  request_id TEXT,
  recipe TEXT NOT NULL,
  create_time_us INTEGER NOT NULL,
  end_time_us INTEGER,
  state TEXT NOT NULL,
  finished_layers INTEGER NOT NULL,
  PRIMARY KEY (tenant, job_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX jobs_by_time ON jobs (tenant, create_time_us, job_id);
CREATE UNIQUE INDEX jobs_by_request ON jobs (tenant, request_id) WHERE request_id IS NOT NULL;
CREATE INDEX jobs_unfinished ON jobs (create_time_us)
  WHERE state NOT IN ('succeeded', 'failed', 'cancelled');

CREATE TABLE layers (
  tenant TEXT NOT NULL,
  job_id TEXT NOT NULL,
  position INTEGER NOT NULL,
  layer_id TEXT NOT NULL,
  rows INTEGER NOT NULL,
  cols INTEGER NOT NULL,
  dtype TEXT NOT NULL,
  fusion_group TEXT NOT NULL,
  statistic_id TEXT,
  recipe TEXT,
  has_own_recipe INTEGER NOT NULL,
  state TEXT NOT NULL,
  error TEXT,
  device_seconds REAL NOT NULL,
  upload_committed INTEGER NOT NULL,
  upload_staging TEXT,
  weight_name TEXT,
  weight_size INTEGER NOT NULL,
  weight_sha256 BLOB NOT NULL,
  PRIMARY KEY (tenant, job_id, position),
  UNIQUE (tenant, job_id, layer_id),
  FOREIGN KEY (tenant, job_id) REFERENCES jobs ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX layers_by_statistic ON layers (tenant, statistic_id) WHERE statistic_id IS NOT NULL;
CREATE INDEX layers_by_weight ON layers (weight_name) WHERE weight_name IS NOT NULL;
CREATE INDEX layers_by_staging ON layers (upload_staging) WHERE upload_staging IS NOT NULL;

CREATE TABLE artifacts (
  tenant TEXT NOT NULL,
  job_id TEXT NOT NULL,
  artifact_id TEXT NOT NULL,
  layer_id TEXT NOT NULL,
  blob_name TEXT,
  blob_size INTEGER NOT NULL,
  blob_sha256 BLOB NOT NULL,
  create_time_us INTEGER NOT NULL,
  PRIMARY KEY (tenant, job_id, artifact_id),
  FOREIGN KEY (tenant, job_id) REFERENCES jobs ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX artifacts_by_time ON artifacts (tenant, job_id, create_time_us, artifact_id);
CREATE INDEX artifacts_by_blob ON artifacts (blob_name) WHERE blob_name IS NOT NULL;

CREATE TABLE statistics (
  tenant TEXT NOT NULL,
  statistic_id TEXT NOT NULL,
  layout TEXT NOT NULL,
  block_size INTEGER NOT NULL,
  cols INTEGER NOT NULL,
  sample_rows INTEGER NOT NULL,
  sample_seed INTEGER NOT NULL,
  sealed INTEGER NOT NULL,
  tokens INTEGER NOT NULL,
  digest TEXT NOT NULL,
  moment_name TEXT,
  moment_size INTEGER NOT NULL,
  moment_sha256 BLOB NOT NULL,
  create_time_us INTEGER NOT NULL,
  PRIMARY KEY (tenant, statistic_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX statistics_by_time ON statistics (tenant, create_time_us, statistic_id);
CREATE INDEX statistics_by_moment ON statistics (moment_name) WHERE moment_name IS NOT NULL;

CREATE TABLE statistic_streams (
  tenant TEXT NOT NULL,
  statistic_id TEXT NOT NULL,
  stream_id TEXT NOT NULL,
  dtype TEXT NOT NULL,
  durable_seq INTEGER NOT NULL,
  tokens INTEGER NOT NULL,
  snapshot_name TEXT,
  snapshot_size INTEGER NOT NULL,
  snapshot_sha256 BLOB NOT NULL,
  recent_crcs BLOB NOT NULL,
  PRIMARY KEY (tenant, statistic_id, stream_id),
  FOREIGN KEY (tenant, statistic_id) REFERENCES statistics ON DELETE CASCADE
) STRICT;
CREATE INDEX streams_by_snapshot ON statistic_streams (snapshot_name)
  WHERE snapshot_name IS NOT NULL;
)sql";

// Version 2: kinds of statistics, the further ones that a layer reads, and whose weight it takes.
constexpr char kToVersion2[] = R"sql(
ALTER TABLE statistics ADD COLUMN kind TEXT NOT NULL DEFAULT 'second_moment';
ALTER TABLE statistics ADD COLUMN paired_cols INTEGER NOT NULL DEFAULT 0;
ALTER TABLE layers ADD COLUMN second_moment_hat_id TEXT;
ALTER TABLE layers ADD COLUMN cross_moment_id TEXT;
ALTER TABLE layers ADD COLUMN residual_moment_id TEXT;
ALTER TABLE layers ADD COLUMN weight_of TEXT;
CREATE INDEX layers_by_second_moment_hat ON layers (tenant, second_moment_hat_id)
  WHERE second_moment_hat_id IS NOT NULL;
CREATE INDEX layers_by_cross_moment ON layers (tenant, cross_moment_id)
  WHERE cross_moment_id IS NOT NULL;
CREATE INDEX layers_by_residual_moment ON layers (tenant, residual_moment_id)
  WHERE residual_moment_id IS NOT NULL;
PRAGMA user_version = 2;
)sql";

// Version 3: priority and deadline of a job, and what tenants have used of the devices: `day`
// counts from 1970, UTC.
constexpr char kToVersion3[] = R"sql(
ALTER TABLE jobs ADD COLUMN priority TEXT NOT NULL DEFAULT 'normal';
ALTER TABLE jobs ADD COLUMN deadline_us INTEGER;
CREATE TABLE device_use (
  tenant TEXT NOT NULL,
  day INTEGER NOT NULL,
  seconds REAL NOT NULL,
  PRIMARY KEY (tenant, day)
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 3;
)sql";

// From each version to the next.
constexpr const char* kSteps[] = {kToVersion2, kToVersion3};

absl::StatusOr<int64_t> ReadNumber(Database& database, const char* sql) {
  auto query = database.Prepare(sql);
  if (!query.ok()) return query.status();
  auto row = query->Step();
  if (!row.ok()) return row.status();
  return *row ? query->Int(0) : 0;
}

}  // namespace

absl::Status PrepareSchema(Database& database) {
  auto transaction = Transaction::Begin(database);
  if (!transaction.ok()) return transaction.status();
  const auto application = ReadNumber(database, "PRAGMA application_id");
  if (!application.ok()) return application.status();
  const auto version = ReadNumber(database, "PRAGMA user_version");
  if (!version.ok()) return version.status();
  const auto tables = ReadNumber(database, "SELECT count(*) FROM sqlite_schema");
  if (!tables.ok()) return tables.status();

  if (*application == 0 && *version == 0 && *tables == 0) {
    if (auto s = database.Execute(kTables); !s.ok()) return s;
    for (const char* step : kSteps) {
      if (auto s = database.Execute(step); !s.ok()) return s;
    }
    const std::string mark = absl::StrCat("PRAGMA application_id = ", kApplicationId);
    if (auto s = database.Execute(mark.c_str()); !s.ok()) return s;
    return transaction->Commit("commit.schema");
  }
  if (*application != kApplicationId) {
    return absl::FailedPreconditionError(
        absl::StrCat("the database was made by another program: expected application id ",
                     kApplicationId, ", found ", *application));
  }
  if (*version < 1 || *version > kVersion) {
    return absl::FailedPreconditionError(absl::StrCat("the database has schema version ", *version,
                                                      "; this program knows versions up to ",
                                                      kVersion));
  }
  if (*version == kVersion) return absl::OkStatus();
  for (int64_t from = *version; from < kVersion; ++from) {
    if (auto s = database.Execute(kSteps[from - 1]); !s.ok()) return s;
  }
  return transaction->Commit("commit.schema");
}

}  // namespace quantd::server::sqlite
