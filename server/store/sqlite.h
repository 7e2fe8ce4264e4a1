#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

struct sqlite3;
struct sqlite3_stmt;

// A thin layer over SQLite's C API: ownership, and absl::Status instead of result codes.
// Codes: RESOURCE_EXHAUSTED full disk, DATA_LOSS damaged file, ALREADY_EXISTS broken key,
// UNAVAILABLE locked by another process, INTERNAL the rest.
namespace quantd::server::sqlite {

class Database;

// One execution of a statement: bind the parameters in order, then step through the rows. Errors of
// binding come out of the next Step(). Must not outlive its database.
class Query {
 public:
  ~Query();
  Query(Query&& other) noexcept;
  Query(const Query&) = delete;
  Query& operator=(const Query&) = delete;
  Query& operator=(Query&&) = delete;

  Query& Bind(int64_t value);
  Query& Bind(double value);
  Query& Bind(absl::string_view text);
  Query& BindBlob(absl::string_view bytes);
  Query& BindNull();
  Query& BindOrNull(absl::string_view text);  // NULL if empty

  // True at a row, false at the end.
  absl::StatusOr<bool> Step();
  // For statements without rows.
  absl::Status Run();

  // Of the current row, columns from 0. A NULL reads as 0 or empty.
  bool IsNull(int column) const;
  int64_t Int(int column) const;
  double Double(int column) const;
  std::string Text(int column) const;  // text or blob

 private:
  friend class Database;
  Query(Database* database, sqlite3_stmt* statement);
  void Check(int code);
  Database* database_;
  sqlite3_stmt* statement_;
  int bound_ = 0;
  absl::Status error_;
};

// A connection. Not thread-safe.
class Database {
 public:
  // Opens or creates the file. `max_bytes` limits its size; 0: no limit.
  static absl::StatusOr<std::unique_ptr<Database>> Open(const std::string& path, int64_t max_bytes);
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  // One or more statements without parameters or rows.
  absl::Status Execute(const char* statements);
  // `sql` is prepared once and kept. One execution of it at a time.
  absl::StatusOr<Query> Prepare(absl::string_view sql);

  // INTERNAL once a sync has failed: what the disk holds is unknown, so nothing may be promised.
  const absl::Status& health() const { return health_; }

 private:
  friend class Query;
  explicit Database(std::string path) : path_(std::move(path)) {}
  absl::Status ErrorOf(int code, absl::string_view doing);
  static int AfterCommit(void* self, sqlite3* connection, const char* name, int frames);

  std::string path_;
  sqlite3* connection_ = nullptr;
  std::unordered_map<std::string, sqlite3_stmt*> statements_;
  absl::Status health_;
};

// BEGIN IMMEDIATE ... COMMIT; rolls back if it is destroyed without Commit().
class Transaction {
 public:
  static absl::StatusOr<Transaction> Begin(Database& database);
  ~Transaction();
  Transaction(Transaction&& other) noexcept;
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;
  Transaction& operator=(Transaction&&) = delete;
  // Durable when it returns OK. `failpoint`: its name (failpoint.h), a literal.
  absl::Status Commit(absl::string_view failpoint);

 private:
  explicit Transaction(Database* database) : database_(database) {}
  Database* database_;
};

}  // namespace quantd::server::sqlite
