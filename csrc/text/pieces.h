// GPT-2's pre-tokenisation: cuts text into the pieces inside which byte pairs are merged.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

struct pcre2_real_code_8;

namespace kvfuse {

class PieceSplitter {
 public:
  static constexpr std::uint32_t kMatchLimit = 10'000'000;  // pcre2's own; a piece needs a handful

  explicit PieceSplitter(std::uint32_t match_limit = kMatchLimit);

  // Hands the pieces to `take` in order; together they are the whole text, which must be valid UTF-8. Any
  // number of threads may split at once. Throws std::runtime_error if pcre2 gives up.
  void split(std::string_view text, const std::function<void(std::string_view)>& take) const;

 private:
  struct FreeCode {
    void operator()(pcre2_real_code_8* code) const;
  };
  std::unique_ptr<pcre2_real_code_8, FreeCode> code_;
  std::uint32_t match_limit_;
};

}  // namespace kvfuse
