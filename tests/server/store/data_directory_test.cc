#include "server/store/data_directory.h"

#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/temp_directory.h"

namespace quantd::server {
namespace {

using ::testing::HasSubstr;

TEST(DataDirectoryTest, IsMadeForItsOwnerAlone) {
  TempDirectory temp;
  const auto directory = DataDirectory::Open(temp.File("a/b"));
  ASSERT_TRUE(directory.ok()) << directory.status();
  struct stat info;
  ASSERT_EQ(::stat(temp.File("a/b").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
  EXPECT_EQ((*directory)->database_path(), temp.File("a/b/quantd.db"));
  EXPECT_EQ((*directory)->blob_directory(), temp.File("a/b/blobs"));
}

TEST(DataDirectoryTest, HasOneHolderAtATime) {
  TempDirectory temp;
  auto first = DataDirectory::Open(temp.path());
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = DataDirectory::Open(temp.path());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr(absl::StrCat("in use by process ", ::getpid())));
  first->reset();
  EXPECT_TRUE(DataDirectory::Open(temp.path()).ok());
}

TEST(DataDirectoryTest, RefusesWhatIsNoDirectory) {
  TempDirectory temp;
  std::ofstream(temp.File("file")) << "x";
  EXPECT_FALSE(DataDirectory::Open(temp.File("file")).ok());
  EXPECT_FALSE(DataDirectory::Open(temp.File("file/below")).ok());
  EXPECT_EQ(DataDirectory::Open("").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace quantd::server
