// std::format for compilers without <format> (g++ 12): mlx-c only fills plain `{}` in error messages.
#pragma once
#if __has_include(<format>)
#include <format>
#else
#include <sstream>
#include <string>
#include <string_view>
namespace std {
template <typename... Args>
string format(string_view pattern, const Args&... args) {
  ostringstream out;
  auto put = [&](const auto& arg) {
    auto hole = pattern.find("{}");
    out << pattern.substr(0, hole);
    if (hole != string_view::npos) {
      out << arg;
      pattern.remove_prefix(hole + 2);
    } else {
      pattern = {};
    }
  };
  (put(args), ...);
  out << pattern;
  return out.str();
}
} // namespace std
#endif
