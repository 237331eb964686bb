// libFuzzer entry: whatever two results files hold, comparing them ends in a table or in an error about a
// file.
#include <cstdint>
#include <string_view>

#include "benchmark/compare.h"
#include "csrc/model/model_file.h"
#include "csrc/text/data_file.h"
#include "tests/cpp/memory_file.h"

// A 0x01 ends the first file; without one the second is the same.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const kvfuse::MemoryFile old_file("old");
  static const kvfuse::MemoryFile new_file("new");
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const std::size_t end = text.find('\x01');
  const std::string_view second = end == std::string_view::npos ? text : text.substr(end + 1);
  try {
    const kvfuse::bench::Comparison comparison = kvfuse::bench::compare_files(
        old_file.holding(text.substr(0, end)), new_file.holding(second), kvfuse::bench::kDefaultThreshold);
    render(comparison_table(comparison), kvfuse::bench::TableFormat::kTable);
  } catch (const kvfuse::ModelFileError&) {
  } catch (const kvfuse::DataFileError&) {
  }
  return 0;
}
