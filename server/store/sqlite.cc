#include "server/store/sqlite.h"

#include <sqlite3.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/store/failpoint.h"
#include "server/store/failpoint_vfs.h"
#include "server/store/sync_failures.h"

namespace quantd::server::sqlite {
namespace {

constexpr int kBusyTimeoutMs = 5000;     // another process only reads, for a moment
constexpr int kCheckpointFrames = 1000;  // SQLite's own default, about 4 MB

bool IsSyncFailure(int code) {
  return code == SQLITE_IOERR_FSYNC || code == SQLITE_IOERR_DIR_FSYNC;
}

absl::StatusCode CodeOf(int code, int system_errno) {
  if (system_errno == ENOSPC || system_errno == EDQUOT) return absl::StatusCode::kResourceExhausted;
  switch (code & 0xff) {
    case SQLITE_FULL:
      return absl::StatusCode::kResourceExhausted;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::StatusCode::kDataLoss;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return absl::StatusCode::kUnavailable;
    case SQLITE_CANTOPEN:
    case SQLITE_PERM:
    case SQLITE_READONLY:
      return absl::StatusCode::kFailedPrecondition;
    case SQLITE_CONSTRAINT:
      return (code == SQLITE_CONSTRAINT_PRIMARYKEY || code == SQLITE_CONSTRAINT_UNIQUE)
                 ? absl::StatusCode::kAlreadyExists
                 : absl::StatusCode::kInternal;
    default:
      return absl::StatusCode::kInternal;
  }
}

}  // namespace

Query::Query(Database* database, sqlite3_stmt* statement)
    : database_(database), statement_(statement) {}

Query::Query(Query&& other) noexcept
    : database_(other.database_),
      statement_(std::exchange(other.statement_, nullptr)),
      bound_(other.bound_),
      error_(std::move(other.error_)) {}

Query::~Query() {
  if (statement_ == nullptr) return;
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);  // they may be large, and the statement is kept
}

void Query::Check(int code) {
  if (code != SQLITE_OK && error_.ok()) {
    error_ = database_->ErrorOf(code, absl::StrCat("bind parameter ", bound_));
  }
}

Query& Query::Bind(int64_t value) {
  Check(sqlite3_bind_int64(statement_, ++bound_, value));
  return *this;
}

Query& Query::Bind(double value) {
  Check(sqlite3_bind_double(statement_, ++bound_, value));
  return *this;
}

// The bytes are copied: callers bind temporaries. An empty view may have a null pointer, which
// SQLite would take for NULL.
Query& Query::Bind(absl::string_view text) {
  Check(sqlite3_bind_text64(statement_, ++bound_, text.empty() ? "" : text.data(), text.size(),
                            SQLITE_TRANSIENT, SQLITE_UTF8));
  return *this;
}

Query& Query::BindBlob(absl::string_view bytes) {
  Check(sqlite3_bind_blob64(statement_, ++bound_, bytes.empty() ? "" : bytes.data(), bytes.size(),
                            SQLITE_TRANSIENT));
  return *this;
}

Query& Query::BindNull() {
  Check(sqlite3_bind_null(statement_, ++bound_));
  return *this;
}

Query& Query::BindOrNull(absl::string_view text) { return text.empty() ? BindNull() : Bind(text); }

absl::StatusOr<bool> Query::Step() {
  if (!error_.ok()) return error_;
  const int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  return database_->ErrorOf(code, sqlite3_sql(statement_));
}

absl::Status Query::Run() { return Step().status(); }

bool Query::IsNull(int column) const {
  return sqlite3_column_type(statement_, column) == SQLITE_NULL;
}

int64_t Query::Int(int column) const { return sqlite3_column_int64(statement_, column); }

double Query::Double(int column) const { return sqlite3_column_double(statement_, column); }

std::string Query::Text(int column) const {
  const void* bytes = sqlite3_column_blob(statement_, column);
  const int size = sqlite3_column_bytes(statement_, column);
  return bytes == nullptr ? std::string() : std::string(static_cast<const char*>(bytes), size);
}

absl::StatusOr<std::unique_ptr<Database>> Database::Open(const std::string& path,
                                                         int64_t max_bytes) {
  std::unique_ptr<Database> database(new Database(path));
  const int code = sqlite3_open_v2(
      path.c_str(), &database->connection_,
      SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE,
      FailpointVfs());
  if (code != SQLITE_OK) return database->ErrorOf(code, "open");
  sqlite3_busy_timeout(database->connection_, kBusyTimeoutMs);
  if (auto s = database->Execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
                                 "PRAGMA foreign_keys = ON; PRAGMA cell_size_check = ON;");
      !s.ok()) {
    return s;
  }
  if (max_bytes > 0) {
    constexpr int64_t kPageBytes = 4096;
    const int64_t pages = std::max<int64_t>(1, max_bytes / kPageBytes);
    if (auto s = database->Execute(absl::StrCat("PRAGMA max_page_count = ", pages).c_str());
        !s.ok()) {
      return s;
    }
  }
  sqlite3_wal_hook(database->connection_, &Database::AfterCommit, database.get());
  return database;
}

Database::~Database() {
  for (auto& [sql, statement] : statements_) sqlite3_finalize(statement);
  sqlite3_close(connection_);
}

// In place of SQLite's automatic checkpoint, which swallows errors: a failed sync of the database
// file has to stop the store, because the log would be reused as if its pages had arrived.
int Database::AfterCommit(void* self, sqlite3* connection, const char* name, int frames) {
  if (frames < kCheckpointFrames) return SQLITE_OK;
  const int code =
      sqlite3_wal_checkpoint_v2(connection, name, SQLITE_CHECKPOINT_PASSIVE, nullptr, nullptr);
  if (IsSyncFailure(code)) static_cast<Database*>(self)->ErrorOf(code, "checkpoint").IgnoreError();
  return SQLITE_OK;  // the commit itself is durable; a full disk is met again at the next one
}

absl::Status Database::ErrorOf(int code, absl::string_view doing) {
  const int system_errno = connection_ == nullptr ? 0 : sqlite3_system_errno(connection_);
  const absl::StatusCode status_code =
      CodeOf(code, (code & 0xff) == SQLITE_IOERR ? system_errno : 0);
  const char* message = connection_ == nullptr ? sqlite3_errstr(code) : sqlite3_errmsg(connection_);
  absl::Status status(status_code,
                      absl::StrCat("database ", path_, ": ", message, " (", sqlite3_errstr(code),
                                   ", code ", code, ") in: ", doing.substr(0, 200)));
  if (IsSyncFailure(code) && health_.ok()) {
    CountSyncFailure();
    health_ = absl::InternalError(absl::StrCat(
        "database ", path_, ": a sync to disk has failed, nothing is accepted until a restart: ",
        sqlite3_errstr(code)));
    return health_;
  }
  return status;
}

absl::Status Database::Execute(const char* statements) {
  const int code = sqlite3_exec(connection_, statements, nullptr, nullptr, nullptr);
  return code == SQLITE_OK ? absl::OkStatus() : ErrorOf(code, statements);
}

absl::StatusOr<Query> Database::Prepare(absl::string_view sql) {
  sqlite3_stmt*& statement = statements_[std::string(sql)];
  if (statement == nullptr) {
    const int code = sqlite3_prepare_v3(connection_, sql.data(), static_cast<int>(sql.size()),
                                        SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
    if (code != SQLITE_OK) return ErrorOf(code, sql);
  }
  return Query(this, statement);
}

absl::StatusOr<Transaction> Transaction::Begin(Database& database) {
  if (!database.health().ok()) return database.health();
  if (auto s = database.Execute("BEGIN IMMEDIATE"); !s.ok()) return s;
  return Transaction(&database);
}

Transaction::Transaction(Transaction&& other) noexcept
    : database_(std::exchange(other.database_, nullptr)) {}

// Some errors have rolled back already; then this one fails, and nothing is lost by that.
Transaction::~Transaction() {
  if (database_ != nullptr) database_->Execute("ROLLBACK").IgnoreError();
}

absl::Status Transaction::Commit(absl::string_view failpoint) {
  return AtFailpoint(failpoint, [this] {
    absl::Status status = database_->Execute("COMMIT");
    if (status.ok()) database_ = nullptr;
    return status;
  });
}

}  // namespace quantd::server::sqlite
