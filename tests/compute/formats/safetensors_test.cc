#include "compute/formats/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace quantd::compute {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string FileOf(absl::string_view json, absl::string_view data = "") {
  const uint64_t length = json.size();
  std::string file(sizeof(length), '\0');
  std::memcpy(file.data(), &length, sizeof(length));
  return absl::StrCat(file, json, data);
}

absl::StatusOr<SafetensorsHeader> Parse(absl::string_view file) {
  return ParseSafetensorsHeader({reinterpret_cast<const std::byte*>(file.data()), file.size()},
                                static_cast<int64_t>(file.size()));
}

NamedTensor Named(std::string name, DType dtype, std::vector<int64_t> shape, uint8_t fill) {
  Tensor tensor = *Tensor::Create(dtype, std::move(shape));
  if (!tensor.empty()) std::memset(tensor.bytes().data(), fill, tensor.bytes().size());
  return {std::move(name), std::move(tensor)};
}

class SafetensorsOnDisk : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    directory_ =
        std::filesystem::path(::testing::TempDir()) / absl::StrCat("safetensors_", info->name());
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directories(directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string Path(absl::string_view name) const { return directory_ / std::string(name); }
  std::vector<std::string> Files() const {
    std::vector<std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(directory_)) {
      files.push_back(entry.path().filename());
    }
    return files;
  }

  std::filesystem::path directory_;
};

TEST_F(SafetensorsOnDisk, WhatIsWrittenIsRead) {
  const NamedTensor a = Named("a", DType::kU8, {3}, 1);
  const NamedTensor b = Named("layer.b \"quoted\" \xc3\xa9", DType::kF32, {2, 2}, 2);
  const NamedTensor empty = Named("empty", DType::kI64, {0, 4}, 0);
  const NamedTensor scalar = Named("scalar", DType::kBF16, {}, 7);
  const std::vector<const NamedTensor*> tensors = {&a, &b, &empty, &scalar};
  const std::map<std::string, std::string> metadata = {{"recipe", "{\"x\":1}"}, {"tool", "quantd"}};
  ASSERT_TRUE(WriteSafetensors(Path("f"), tensors, metadata).ok());
  EXPECT_THAT(Files(), ElementsAre("f"));  // no temporary file is left

  const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(Path("f"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->header().metadata, metadata);
  for (const NamedTensor* tensor : tensors) {
    const absl::StatusOr<Tensor> read = file->Read(tensor->name);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->dtype(), tensor->tensor.dtype());
    EXPECT_EQ(read->shape(), tensor->tensor.shape());
    EXPECT_TRUE(std::equal(read->bytes().begin(), read->bytes().end(),
                           tensor->tensor.bytes().begin(), tensor->tensor.bytes().end()));
  }
  EXPECT_THAT(file->Read("c").status().ToString(), HasSubstr("no tensor 'c'"));
}

TEST_F(SafetensorsOnDisk, FileAndSerializationAgreeAndTensorsAreAligned) {
  const NamedTensor a = Named("a", DType::kU8, {3}, 1);
  const NamedTensor b = Named("b", DType::kF64, {5}, 2);
  const NamedTensor c = Named("c", DType::kF16, {1}, 3);
  const std::vector<const NamedTensor*> tensors = {&a, &b, &c};
  ASSERT_TRUE(WriteSafetensors(Path("f"), tensors, {}).ok());
  const absl::StatusOr<std::string> serialized = SerializeSafetensors(tensors, {});
  ASSERT_TRUE(serialized.ok());
  std::ifstream stream(Path("f"), std::ios::binary);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(stream), {}), *serialized);
  const absl::StatusOr<SafetensorsHeader> header = Parse(*serialized);
  ASSERT_TRUE(header.ok()) << header.status();
  for (const SafetensorsEntry& entry : header->entries) {
    EXPECT_EQ(entry.offset % static_cast<int64_t>(SizeOf(entry.dtype)), 0) << entry.name;
  }
  EXPECT_EQ((*header->Find("b"))->offset % 8, 0);
}

TEST_F(SafetensorsOnDisk, ErrorsNameThePathAndLeaveNothingBehind) {
  EXPECT_EQ(SafetensorsFile::Open(Path("missing")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(SafetensorsFile::Open(directory_).status().ToString(), HasSubstr("regular file"));
  std::ofstream(Path("short")) << "abc";
  EXPECT_THAT(SafetensorsFile::Open(Path("short")).status().ToString(),
              HasSubstr("at least 8 bytes"));
  const NamedTensor a = Named("a", DType::kU8, {3}, 1);
  const std::vector<const NamedTensor*> tensors = {&a};
  EXPECT_FALSE(WriteSafetensors(Path("no/such/directory"), tensors, {}).ok());
  const std::vector<const NamedTensor*> twice = {&a, &a};
  EXPECT_THAT(WriteSafetensors(Path("twice"), twice, {}).ToString(), HasSubstr("named a"));
  EXPECT_THAT(Files(), ElementsAre("short"));
}

TEST_F(SafetensorsOnDisk, AFileThatShrinksAfterOpeningIsDataLoss) {
  const NamedTensor a = Named("a", DType::kU8, {100}, 1);
  const std::vector<const NamedTensor*> tensors = {&a};
  ASSERT_TRUE(WriteSafetensors(Path("f"), tensors, {}).ok());
  const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(Path("f"));
  ASSERT_TRUE(file.ok());
  std::filesystem::resize_file(Path("f"), std::filesystem::file_size(Path("f")) - 1);
  EXPECT_EQ(file->Read("a").status().code(), absl::StatusCode::kDataLoss);
}

TEST(SafetensorsWriter, RefusesNamesThatAFileCannotCarry) {
  const NamedTensor reserved = Named("__metadata__", DType::kU8, {1}, 0);
  const NamedTensor broken = Named("\xff\xfe", DType::kU8, {1}, 0);
  for (const NamedTensor* tensor : {&reserved, &broken}) {
    const std::vector<const NamedTensor*> tensors = {tensor};
    EXPECT_EQ(SerializeSafetensors(tensors, {}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_FALSE(SerializeSafetensors({}, {{"key", "\xff"}}).ok());
}

TEST(SafetensorsHeader, AcceptsWhatTheFormatAllows) {
  const absl::StatusOr<SafetensorsHeader> empty = Parse(FileOf("{}"));
  ASSERT_TRUE(empty.ok()) << empty.status();
  EXPECT_THAT(empty->entries, IsEmpty());
  const absl::StatusOr<SafetensorsHeader> header = Parse(
      FileOf(R"({"b":{"shape":[2],"data_offsets":[0,2],"dtype":"U8"},"__metadata__":{"k":"v"},)"
             R"("z":{"dtype":"F32","shape":[0,9],"data_offsets":[2,2]},)"
             R"("a":{"dtype":"I8","shape":[],"data_offsets":[2,3]}}   )",
             "123"));
  ASSERT_TRUE(header.ok()) << header.status();
  ASSERT_EQ(header->entries.size(), 3u);
  EXPECT_EQ(header->entries[0].name, "b");
  EXPECT_EQ(header->entries[1].name, "z");
  EXPECT_EQ(header->entries[2].name, "a");
  EXPECT_EQ(header->metadata.at("k"), "v");
}

struct Hostile {
  std::string name;
  std::string file;
  std::string error;
};

std::string OneTensor(absl::string_view fields, absl::string_view data = "12345678") {
  return FileOf(absl::StrCat(R"({"a":{)", fields, "}}"), data);
}

std::vector<Hostile> HostileFiles() {
  const std::string huge_length("\xff\xff\xff\xff\xff\xff\xff\xff", 8);
  std::string deep = R"({"a":)";
  deep.append(1 << 20, '[');
  std::string wide = R"({"a":{"shape":[)";
  for (int i = 0; i < 100'000; ++i) wide += "1,";
  return {
      {"Empty", "", "at least 8 bytes"},
      {"HugeLength", huge_length + "{}", "expected a header of at most"},
      {"LengthBeyondFile", FileOf("{}").substr(0, 9), "expected a header of at most 1 bytes"},
      {"NotJson", FileOf("{\"a\""), "broken at byte"},
      {"List", FileOf("[]"), "expected a JSON object"},
      {"LeadingSpace", FileOf(" {}"), "expected a JSON object"},
      {"TrailingJunk", FileOf("{}x"), "broken at byte"},
      {"DeepNesting", FileOf(deep), "did not expect a list"},
      {"LongShape", FileOf(wide), "at most 8 numbers in 'a'.'shape'"},
      {"BrokenUtf8", FileOf("{\"\xff\":1}"), "broken at byte"},
      {"NotAnEntry", FileOf(R"({"a":1})"), "did not expect a number in 'a'"},
      {"NullEntry", FileOf(R"({"a":null})"), "did not expect null"},
      {"SameNameTwice",
       FileOf(
           R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})"),
       "'a' occurs twice"},
      {"MetadataTwice", FileOf(R"({"__metadata__":{},"__metadata__":{}})"),
       "__metadata__ occurs twice"},
      {"MetadataKeyTwice", FileOf(R"({"__metadata__":{"k":"1","k":"2"}})"),
       "metadata 'k' occurs twice"},
      {"MetadataNumber", FileOf(R"({"__metadata__":{"k":1}})"), "did not expect a number in 'k'"},
      {"MetadataNested", FileOf(R"({"__metadata__":{"k":{}}})"), "did not expect an object in 'k'"},
      {"MissingShape", OneTensor(R"("dtype":"U8","data_offsets":[0,8])"), "expected dtype, shape"},
      {"UnknownField", OneTensor(R"("dtype":"U8","shape":[8],"data_offsets":[0,8],"x":1)"),
       "'a'.'x'"},
      {"FieldTwice", OneTensor(R"("dtype":"U8","dtype":"U8","shape":[8],"data_offsets":[0,8])"),
       "'a'.'dtype' occurs twice"},
      {"UnknownDtype", OneTensor(R"("dtype":"Q4","shape":[8],"data_offsets":[0,8])"), "got 'Q4'"},
      {"NegativeDimension", OneTensor(R"("dtype":"U8","shape":[-8],"data_offsets":[0,8])"),
       "did not expect a negative number"},
      {"FractionalDimension", OneTensor(R"("dtype":"U8","shape":[8.0],"data_offsets":[0,8])"),
       "did not expect a fraction"},
      {"HugeDimension",
       OneTensor(R"("dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,8])"),
       "exceeds 63 bits"},
      {"GiantDimension",
       OneTensor(R"("dtype":"U8","shape":[99999999999999999999999],"data_offsets":[0,8])"),
       "did not expect a fraction"},
      {"OverflowingShape",
       OneTensor(R"("dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,8])"),
       "overflows 64 bits"},
      {"WrappingShape",
       OneTensor(R"("dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0])", ""),
       "overflows 64 bits"},
      {"ThreeOffsets", OneTensor(R"("dtype":"U8","shape":[8],"data_offsets":[0,8,8])"),
       "expected data_offsets"},
      {"BackwardOffsets", OneTensor(R"("dtype":"U8","shape":[8],"data_offsets":[8,0])"),
       "expected data_offsets"},
      {"OffsetsBeyondFile", OneTensor(R"("dtype":"U8","shape":[9],"data_offsets":[0,9])"),
       "within 8 bytes"},
      {"SizeMismatch", OneTensor(R"("dtype":"F32","shape":[8],"data_offsets":[0,8])"),
       "expected 32 bytes"},
      {"GapAtStart", OneTensor(R"("dtype":"U8","shape":[4],"data_offsets":[4,8])"), "(a gap)"},
      {"TrailingData", OneTensor(R"("dtype":"U8","shape":[4],"data_offsets":[0,4])"),
       "behind its last tensor"},
      {"Overlap",
       FileOf(
           R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[6],"data_offsets":[2,8]}})",
           "12345678"),
       "(an overlap)"},
      {"GapBetween",
       FileOf(
           R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
           "12345678"),
       "(a gap)"},
  };
}

class HostileSafetensors : public ::testing::TestWithParam<Hostile> {};

TEST_P(HostileSafetensors, IsRefusedWithAReason) {
  const absl::StatusOr<SafetensorsHeader> header = Parse(GetParam().file);
  ASSERT_EQ(header.status().code(), absl::StatusCode::kInvalidArgument) << header.status();
  EXPECT_THAT(header.status().ToString(), HasSubstr(GetParam().error));
}

INSTANTIATE_TEST_SUITE_P(Files, HostileSafetensors, ::testing::ValuesIn(HostileFiles()),
                         [](const auto& info) { return info.param.name; });

TEST(SafetensorsHeader, EveryTruncationOfAFileIsRefused) {
  const NamedTensor a = Named("a", DType::kF32, {3}, 1);
  const std::vector<const NamedTensor*> tensors = {&a};
  const std::string file = *SerializeSafetensors(tensors, {{"k", "v"}});
  ASSERT_TRUE(Parse(file).ok());
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_FALSE(Parse(absl::string_view(file).substr(0, size)).ok()) << size;
  }
}

TEST(SafetensorsHeader, TheHeaderAloneSufficesAsPrefix) {
  const NamedTensor a = Named("a", DType::kF32, {300}, 1);
  const std::vector<const NamedTensor*> tensors = {&a};
  const std::string file = *SerializeSafetensors(tensors, {});
  const size_t header_size = file.size() - 1200;
  const absl::StatusOr<SafetensorsHeader> header =
      ParseSafetensorsHeader({reinterpret_cast<const std::byte*>(file.data()), header_size},
                             static_cast<int64_t>(file.size()));
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->entries[0].size, 1200);
}

}  // namespace
}  // namespace quantd::compute
