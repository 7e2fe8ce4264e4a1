// Any text is either refused or a recipe that is written as text that says the same.
#include "compute/recipe/recipe.h"
#include "tests/fuzz/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using quantd::compute::RecipeFromJson;
  const auto recipe = RecipeFromJson({reinterpret_cast<const char*>(data), size});
  if (!recipe.ok()) {
    quantd::fuzz::CheckRefusal(recipe.status(), absl::StatusCode::kInvalidArgument);
    return 0;
  }
  const auto again = RecipeFromJson(ToJson(*recipe));
  FUZZ_CHECK(again.ok());
  FUZZ_CHECK(*again == *recipe);
  return 0;
}
