// Rules that several parts of the toolkit share, and the sentences that say what broke them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvfuse::roofline {

// Bounds of sizes: beyond any machine or model that there is, and small enough that every count of the
// toolkit is exact in a double and every product of two fits 64 bits.
inline constexpr std::int64_t kMostTokens = 1 << 26;
inline constexpr std::int64_t kMostBatch = 1 << 20;
inline constexpr std::int64_t kMostHeads = 1024;
inline constexpr std::int64_t kMostHeadDim = 1 << 16;

// A number as a message shows it: at most 6 digits after the point, none that say nothing.
std::string number_text(double value);

// Of an input of any length and content, what a message of one line can show: printable ASCII, "?" for other
// bytes, at most `most` of them.
std::string shown(std::string_view text, std::size_t most = 60);

// Throw std::invalid_argument naming the field, the rule and the value.
void check_range(std::string_view field, std::int64_t value, std::int64_t least, std::int64_t most);
void check_positive(std::string_view field, double value);  // NaN and infinity break the rule
void check_not_negative(std::string_view field, double value);
void check_share(std::string_view field, double value);  // 0 < value <= 1
void check_divides(std::string_view divisor_field, std::int64_t divisor, std::string_view field,
                   std::int64_t value);

// Lower case, with "-" and " " as "_": names that differ in no more are one name.
std::string normal_name(std::string_view name);

// The known name that takes the fewest edits to reach; "" if there is none.
std::string nearest_name(std::string_view name, std::span<const std::string> known);

// "<what>: expected one of a, b, c, got \"x\" (did you mean b?)", as std::invalid_argument.
[[noreturn]] void unknown_name(std::string_view what, std::string_view name,
                               std::span<const std::string> known);

}  // namespace kvfuse::roofline
