#include "client/cpp/activation_window.h"

#include <gtest/gtest.h>

#include <deque>
#include <random>

#include "compute/tensor/checksum.h"

namespace quantd::client {
namespace {

constexpr int64_t kPlenty = int64_t{1} << 40;

// Sends what may be sent; how many chunks that was.
int SendAll(ActivationWindow& window) {
  int sent = 0;
  for (; window.NextToSend() != nullptr; ++sent) window.MarkSent();
  return sent;
}

TEST(ActivationWindowTest, NumbersAndChecksumsChunks) {
  ActivationWindow window(kPlenty);
  ASSERT_TRUE(window.Restart(0, kPlenty).ok());
  window.Add({3, "abc"});
  window.Add({4, "abcd"});
  const ActivationChunk* chunk = window.NextToSend();
  ASSERT_NE(chunk, nullptr);
  EXPECT_EQ(chunk->seq, 1);
  EXPECT_EQ(chunk->tokens.rows, 3);
  EXPECT_EQ(chunk->crc32c, compute::Crc32c("abc"));
  window.MarkSent();
  ASSERT_NE(window.NextToSend(), nullptr);
  EXPECT_EQ(window.NextToSend()->seq, 2);
}

TEST(ActivationWindowTest, SendsOnlyWhatTheCreditCovers) {
  ActivationWindow window(kPlenty);
  ASSERT_TRUE(window.Restart(0, 10).ok());
  for (int i = 0; i < 5; ++i) window.Add({1, "1234"});
  EXPECT_EQ(SendAll(window), 2);
  EXPECT_EQ(window.in_flight_bytes(), 8);
  ASSERT_TRUE(window.Acknowledge(1, 0, 10).ok());
  EXPECT_EQ(window.in_flight_bytes(), 4);
  EXPECT_EQ(SendAll(window), 1);
  ASSERT_TRUE(window.Acknowledge(3, 0, 0).ok());  // the server asks for a pause
  EXPECT_EQ(SendAll(window), 0);
  ASSERT_TRUE(window.Acknowledge(3, 3, 10).ok());
  EXPECT_EQ(SendAll(window), 2);
  EXPECT_TRUE(window.AllSent());
  EXPECT_FALSE(window.AllDurable());
  ASSERT_TRUE(window.Acknowledge(5, 5, 10).ok());
  EXPECT_TRUE(window.AllDurable());
}

TEST(ActivationWindowTest, CountsWeightsAndPairedData) {
  ActivationWindow window(kPlenty);
  ASSERT_TRUE(window.Restart(0, 20).ok());
  for (int i = 0; i < 2; ++i) {
    window.Add({.rows = 2, .data = "1234", .weights = {1.0f, 0.5f}, .paired = "567"});
  }
  EXPECT_EQ(window.NextToSend()->paired_crc32c, compute::Crc32c("567"));
  EXPECT_EQ(SendAll(window), 1);
  EXPECT_EQ(window.in_flight_bytes(), 15);
  ASSERT_TRUE(window.Acknowledge(1, 0, 20).ok());
  EXPECT_EQ(SendAll(window), 1);
}

TEST(ActivationWindowTest, KeepsChunksUntilTheyAreDurable) {
  ActivationWindow window(10);
  ASSERT_TRUE(window.Restart(0, kPlenty).ok());
  EXPECT_TRUE(window.HasRoom(100));  // one chunk always fits
  window.Add({1, std::string(8, 'x')});
  EXPECT_FALSE(window.HasRoom(8));
  SendAll(window);
  ASSERT_TRUE(window.Acknowledge(1, 0, kPlenty).ok());
  EXPECT_FALSE(window.HasRoom(8));
  ASSERT_TRUE(window.Acknowledge(1, 1, kPlenty).ok());
  EXPECT_TRUE(window.HasRoom(8));
}

TEST(ActivationWindowTest, SendsAgainWhatWasNotDurable) {
  ActivationWindow window(kPlenty);
  ASSERT_TRUE(window.Restart(0, 100).ok());
  for (int i = 0; i < 4; ++i) window.Add({1, "1234"});
  EXPECT_EQ(SendAll(window), 4);
  ASSERT_TRUE(window.Acknowledge(3, 1, 100).ok());
  ASSERT_TRUE(window.Restart(2, 100).ok());
  ASSERT_NE(window.NextToSend(), nullptr);
  EXPECT_EQ(window.NextToSend()->seq, 3);
  EXPECT_EQ(window.in_flight_bytes(), 0);
  EXPECT_EQ(SendAll(window), 2);
}

TEST(ActivationWindowTest, ContinuesAStreamOfAnEarlierClient) {
  ActivationWindow window(kPlenty);
  ASSERT_TRUE(window.Restart(7, 100).ok());
  EXPECT_EQ(window.next_seq(), 8);
  EXPECT_TRUE(window.AllDurable());
  window.Add({1, "x"});
  ASSERT_NE(window.NextToSend(), nullptr);
  EXPECT_EQ(window.NextToSend()->seq, 8);
}

TEST(ActivationWindowTest, RefusesAServerThatForgot) {
  ActivationWindow window(kPlenty);
  ASSERT_TRUE(window.Restart(0, 100).ok());
  window.Add({1, "x"});
  window.Add({1, "y"});
  SendAll(window);
  ASSERT_TRUE(window.Acknowledge(1, 1, 100).ok());
  EXPECT_TRUE(absl::IsDataLoss(window.Restart(0, 100)));
}

TEST(ActivationWindowTest, NoticesAnotherWriter) {
  ActivationWindow window(kPlenty);
  ASSERT_TRUE(window.Restart(0, 100).ok());
  window.Add({1, "x"});
  EXPECT_TRUE(absl::IsAborted(window.Restart(2, 100)));
}

TEST(ActivationWindowTest, RefusesAcknowledgementsOfWhatWasNeverSent) {
  ActivationWindow window(kPlenty);
  ASSERT_TRUE(window.Restart(0, 100).ok());
  window.Add({1, "x"});
  EXPECT_TRUE(absl::IsInternal(window.Acknowledge(1, 0, 100)));
  EXPECT_TRUE(absl::IsInternal(window.Acknowledge(0, 1, 100)));
}

// Against random acknowledgements and reconnects: the server, which takes chunks in sequence only,
// gets each exactly once, and the credit is never overrun.
TEST(ActivationWindowTest, DeliversEachChunkOnceWhateverHappens) {
  for (uint32_t seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % n); };
    ActivationWindow window(200);
    std::deque<ActivationChunk> wire;
    int64_t received = 0;
    int64_t durable = 0;
    int64_t received_bytes = 0;
    int64_t added_bytes = 0;
    int64_t credit = 50;
    ASSERT_TRUE(window.Restart(0, credit).ok());
    for (int step = 0; step < 400 || !window.AllDurable(); ++step) {
      ASSERT_LT(step, 100000);
      switch (below(6)) {
        case 0:
          if (const int64_t size = 1 + below(40); step < 400 && window.HasRoom(size)) {
            window.Add({1, std::string(static_cast<size_t>(size), 'x')});
            added_bytes += size;
          }
          break;
        case 1:
        case 2:
          if (const ActivationChunk* chunk = window.NextToSend()) {
            wire.push_back(*chunk);
            window.MarkSent();
            ASSERT_LE(window.in_flight_bytes(), credit);
          }
          break;
        case 3:  // the server takes a chunk and says so
          if (!wire.empty()) {
            ASSERT_EQ(wire.front().seq, ++received);
            received_bytes += static_cast<int64_t>(wire.front().tokens.data.size());
            wire.pop_front();
            credit = 50 + below(50);
            ASSERT_TRUE(window.Acknowledge(received, durable, credit).ok());
          }
          break;
        case 4:
          durable += below(received - durable + 1);
          ASSERT_TRUE(window.Acknowledge(received, durable, credit).ok());
          break;
        case 5:
          if (below(5) == 0) {  // what is not durable is lost on both sides
            wire.clear();
            ASSERT_TRUE(window.Restart(durable, credit).ok());
            received = durable;
          }
          break;
      }
    }
    EXPECT_EQ(durable, window.next_seq() - 1);
    EXPECT_GE(received_bytes, added_bytes);
  }
}

}  // namespace
}  // namespace quantd::client
