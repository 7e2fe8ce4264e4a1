#include "server/ingest/shared_region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "server/errors/error.h"

namespace quantd::server {
namespace {

// A region as a client makes it, with this test's own name; unlinked at the end.
class ClientRegion {
 public:
  explicit ClientRegion(const std::string& id, mode_t mode = 0600)
      : name_(absl::StrCat("quantd.test.", getpid(), "-", id)),
        fd_(shm_open(absl::StrCat("/", name_).c_str(), O_CREAT | O_EXCL | O_RDWR, mode)) {
    if (fd_ < 0) ADD_FAILURE() << "shm_open " << name_;
  }
  ~ClientRegion() {
    close(fd_);
    shm_unlink(absl::StrCat("/", name_).c_str());
  }
  ClientRegion(const ClientRegion&) = delete;
  ClientRegion& operator=(const ClientRegion&) = delete;

  const std::string& name() const { return name_; }
  void Write(int64_t offset, const std::string& bytes) const {
    ASSERT_EQ(pwrite(fd_, bytes.data(), bytes.size(), offset), static_cast<ssize_t>(bytes.size()));
  }
  void Truncate(int64_t size) const { ASSERT_EQ(ftruncate(fd_, size), 0); }

 private:
  const std::string name_;
  const int fd_;
};

TEST(SharedRegionTest, ReadsWhatLiesThereNow) {
  const ClientRegion client("reads");
  client.Write(0, "0123456789");
  const auto region = SharedRegion::Open(client.name());
  ASSERT_TRUE(region.ok()) << region.status();
  EXPECT_EQ((*region)->Read(0, 10).value(), "0123456789");
  EXPECT_EQ((*region)->Read(3, 4).value(), "3456");
  EXPECT_EQ((*region)->Read(10, 0).value(), "");
  client.Write(4, "xy");
  client.Write(10, "grown");
  EXPECT_EQ((*region)->Read(3, 4).value(), "3xy6");
  EXPECT_EQ((*region)->Read(8, 7).value(), "89grown");
}

TEST(SharedRegionTest, EndsBeforeTheRange) {
  const ClientRegion client("ends");
  client.Write(0, "0123456789");
  const auto region = SharedRegion::Open(client.name());
  ASSERT_TRUE(region.ok()) << region.status();
  const absl::Status status = (*region)->Read(7, 5).status();
  EXPECT_TRUE(absl::IsOutOfRange(status)) << status;
  EXPECT_EQ(DetailsOf(status).reason, "SHARED_REGION_TOO_SHORT");
  EXPECT_NE(status.message().find("expected 5 bytes at offset 7"), std::string::npos) << status;
  EXPECT_NE(status.message().find("got 3"), std::string::npos) << status;
  for (const int64_t offset :
       {int64_t{10}, int64_t{1} << 40, int64_t{1} << 62, std::numeric_limits<int64_t>::max()}) {
    EXPECT_TRUE(absl::IsOutOfRange((*region)->Read(offset, 1).status())) << offset;
  }
}

TEST(SharedRegionTest, MayBeTruncatedAndUnlinkedWhileItIsOpen) {
  constexpr int64_t kSize = 1 << 20;
  absl::StatusOr<std::unique_ptr<SharedRegion>> region;
  {
    const ClientRegion client("truncated");
    client.Truncate(kSize);
    region = SharedRegion::Open(client.name());
    ASSERT_TRUE(region.ok()) << region.status();
    EXPECT_EQ((*region)->Read(0, kSize).value(), std::string(kSize, '\0'));
    client.Truncate(5000);
    const absl::Status status = (*region)->Read(0, kSize).status();
    EXPECT_TRUE(absl::IsOutOfRange(status)) << status;
    EXPECT_NE(status.message().find("got 5000"), std::string::npos) << status;
    client.Write(0, "still here");
  }
  EXPECT_EQ((*region)->Read(0, 10).value(), "still here");
}

TEST(SharedRegionTest, RefusesWhatIsNoRegion) {
  const absl::Status missing = SharedRegion::Open("quantd.test.never").status();
  EXPECT_TRUE(absl::IsNotFound(missing)) << missing;
  EXPECT_EQ(DetailsOf(missing).reason, "NO_SHARED_REGION");
  EXPECT_FALSE(SharedRegion::Open("quantd.test.../../etc/passwd").ok());
  EXPECT_FALSE(SharedRegion::Open("").ok());

  const ClientRegion target("target");
  const std::string path = absl::StrCat("/dev/shm/quantd.test.", getpid(), "-other");
  const std::string name = path.substr(sizeof("/dev/shm/") - 1);
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  EXPECT_EQ(DetailsOf(SharedRegion::Open(name).status()).precondition_type, "NO_SHARED_REGION");
  unlink(path.c_str());
  ASSERT_EQ(mkdir(path.c_str(), 0700), 0);
  EXPECT_EQ(DetailsOf(SharedRegion::Open(name).status()).precondition_type, "NO_SHARED_REGION");
  rmdir(path.c_str());
  ASSERT_EQ(symlink(absl::StrCat("/dev/shm/", target.name()).c_str(), path.c_str()), 0);
  EXPECT_EQ(DetailsOf(SharedRegion::Open(name).status()).precondition_type, "NO_SHARED_REGION");
  unlink(path.c_str());
}

TEST(SharedRegionTest, SaysThatItMustNotBeRead) {
  if (geteuid() == 0) GTEST_SKIP() << "root may read everything";
  const ClientRegion client("secret", 0200);
  const absl::Status status = SharedRegion::Open(client.name()).status();
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_EQ(DetailsOf(status).reason, "SHARED_REGION_UNREADABLE");
}

}  // namespace
}  // namespace quantd::server
