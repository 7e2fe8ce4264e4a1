#include "server/store/file.h"

#include "gtest/gtest.h"
#include "server/store/sync_failures.h"
#include "tests/server/temp_directory.h"

namespace quantd::server {
namespace {

TEST(FileTest, SyncsThatFailAreCounted) {
  TempDirectory directory;
  auto file = PosixFileSystem().Create(directory.File("data"));
  ASSERT_TRUE(file.ok()) << file.status();
  const int64_t before = SyncFailures();
  EXPECT_TRUE((*file)->SyncData().ok());
  EXPECT_TRUE((*file)->Sync().ok());
  EXPECT_EQ(SyncFailures(), before);

  file = PosixFileSystem().OpenForWriting("/dev/null");  // which cannot be synced
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_FALSE((*file)->SyncData().ok());
  EXPECT_FALSE((*file)->Sync().ok());
  EXPECT_EQ(SyncFailures(), before + 2);
}

}  // namespace
}  // namespace quantd::server
