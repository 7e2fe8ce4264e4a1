#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace quantd::server {

// What a credential allows. None implies another.
enum class Role : unsigned { kSubmit = 1, kRead = 2, kAdmin = 4 };

// A set of roles. A value type.
class Roles {
 public:
  constexpr Roles() = default;
  static constexpr Roles SubmitAndRead() { return Roles().With(Role::kSubmit).With(Role::kRead); }
  static constexpr Roles All() { return SubmitAndRead().With(Role::kAdmin); }

  constexpr Roles With(Role role) const {
    Roles result = *this;
    result.bits_ |= static_cast<unsigned>(role);
    return result;
  }
  // "submit", "read" or "admin"; other names add nothing.
  Roles With(absl::string_view name) const {
    if (name == "submit") return With(Role::kSubmit);
    if (name == "read") return With(Role::kRead);
    if (name == "admin") return With(Role::kAdmin);
    return *this;
  }
  constexpr bool Has(Role role) const { return (bits_ & static_cast<unsigned>(role)) != 0; }
  constexpr bool Meets(Roles others) const { return (bits_ & others.bits_) != 0; }
  // "submit, read"; "none" for no role.
  std::string ToString() const {
    std::string text;
    const auto add = [&](Role role, const char* name) {
      if (Has(role)) text += (text.empty() ? "" : ", ") + std::string(name);
    };
    add(Role::kSubmit, "submit");
    add(Role::kRead, "read");
    add(Role::kAdmin, "admin");
    return text.empty() ? "none" : text;
  }
  constexpr bool operator==(const Roles&) const = default;

 private:
  unsigned bits_ = 0;
};

}  // namespace quantd::server
