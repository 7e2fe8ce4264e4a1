#include "client/cli/input_tensor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "compute/tensor/tensor.h"

namespace quantd::cli {
namespace {

using compute::DType;
using compute::NamedTensor;
using compute::Tensor;
using testing::HasSubstr;

class PickTensorTest : public testing::Test {
 protected:
  ~PickTensorTest() override { std::filesystem::remove(path_); }

  void Write(const std::vector<std::tuple<std::string, DType, std::vector<int64_t>>>& tensors) {
    std::vector<NamedTensor> all;
    for (const auto& [name, dtype, shape] : tensors) {
      absl::StatusOr<Tensor> tensor = Tensor::Create(dtype, shape);
      ASSERT_TRUE(tensor.ok());
      // Recognizable bytes.
      for (size_t i = 0; i < tensor->bytes().size(); ++i) {
        tensor->bytes()[i] = static_cast<std::byte>(name[0] + i % 7);
      }
      all.push_back({name, *std::move(tensor)});
    }
    std::vector<const NamedTensor*> pointers;
    for (const NamedTensor& each : all) pointers.push_back(&each);
    const absl::Status status = compute::WriteSafetensors(path_, pointers, {});
    ASSERT_TRUE(status.ok()) << status;
  }

  absl::StatusOr<InputTensor> Pick(const std::string& wanted, bool any_rank = false) {
    return PickTensor(path_, wanted, "weight",
                      any_rank ? TensorRank::kMatrixOrMore : TensorRank::kMatrix);
  }

  const std::string path_ = testing::TempDir() + "pick_" +
                            testing::UnitTest::GetInstance()->current_test_info()->name() +
                            ".safetensors";
};

TEST_F(PickTensorTest, TakesTheUsualNameAndReadsItsBytes) {
  Write({{"other", DType::kF32, {4, 4}}, {"weight", DType::kBF16, {3, 8}}});
  const auto picked = Pick("");
  ASSERT_TRUE(picked.ok()) << picked.status();
  EXPECT_EQ(picked->entry.name, "weight");
  EXPECT_EQ(picked->rows(), 3);
  EXPECT_EQ(picked->cols(), 8);
  EXPECT_TRUE(picked->remark.empty());
  auto source = picked->Open();
  ASSERT_TRUE(source.ok()) << source.status();
  ASSERT_EQ((*source)->size(), 48);
  std::byte first[2];
  ASSERT_TRUE((*source)->Read(0, absl::MakeSpan(first)).ok());
  EXPECT_EQ(static_cast<char>(first[0]), 'w');
  EXPECT_TRUE(absl::IsOutOfRange((*source)->Read(47, absl::MakeSpan(first))));
}

TEST_F(PickTensorTest, TakesTheOnlyTensorAndSaysSo) {
  Write({{"w1", DType::kF32, {4, 4}}});
  const auto picked = Pick("");
  ASSERT_TRUE(picked.ok()) << picked.status();
  EXPECT_EQ(picked->entry.name, "w1");
  EXPECT_THAT(picked->remark, HasSubstr("`w1` (F32 4 x 4)"));
}

TEST_F(PickTensorTest, ListsTheTensorsWhereTheChoiceIsNotClear) {
  Write({{"a", DType::kF32, {4, 4}}, {"b", DType::kF16, {2, 6}}});
  const auto picked = Pick("");
  EXPECT_TRUE(absl::IsNotFound(picked.status()));
  EXPECT_THAT(std::string(picked.status().message()),
              testing::AllOf(HasSubstr(path_), HasSubstr("no tensor `weight`"),
                             HasSubstr("`a` (F32 4 x 4)"), HasSubstr("`b` (F16 2 x 6)")));
}

TEST_F(PickTensorTest, AWantedTensorIsNotReplaced) {
  Write({{"a", DType::kF32, {4, 4}}});
  EXPECT_TRUE(absl::IsNotFound(Pick("b").status()));
  EXPECT_TRUE(Pick("a").ok());
}

TEST_F(PickTensorTest, RefusesWhatIsNoFloatMatrix) {
  Write(
      {{"codes", DType::kU8, {4, 4}}, {"cube", DType::kF32, {2, 3, 4}}, {"row", DType::kF32, {4}}});
  EXPECT_TRUE(absl::IsInvalidArgument(Pick("codes").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Pick("row", true).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Pick("cube").status()));
  const auto cube = Pick("cube", true);  // batch x tokens x columns
  ASSERT_TRUE(cube.ok()) << cube.status();
  EXPECT_EQ(cube->rows(), 6);
  EXPECT_EQ(cube->cols(), 4);
}

TEST_F(PickTensorTest, NamesAFileThatIsMissing) {
  const auto picked = Pick("");
  EXPECT_FALSE(picked.ok());
  EXPECT_THAT(std::string(picked.status().message()), HasSubstr(path_));
}

TEST(LayerIdTest, FollowsTheNameOfTheWeight) {
  EXPECT_EQ(LayerIdOf("weight"), "weight");
  EXPECT_EQ(LayerIdOf("model.layers.0.mlp.up_proj.weight"), "model.layers.0.mlp.up_proj");
  EXPECT_EQ(LayerIdOf("w1"), "w1");
  EXPECT_EQ(LayerIdOf("encoder/layer:3.weight"), "encoder_layer_3");
  EXPECT_EQ(LayerIdOf(std::string(400, 'x')).size(), 256u);
  EXPECT_EQ(LayerIdOf(".weight"), "weight");
}

}  // namespace
}  // namespace quantd::cli
