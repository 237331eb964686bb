// Reads a results file as a stranger's: line by line, without locking, repairing or trusting it.
#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace kvfuse::bench {

// Calls `visit` for each record in order; at most one line is in memory. The tokens NaN, Infinity and
// -Infinity, which Python writes, are read as null. Returns a sentence about a last line that was cut off, if
// there is one. Throws ModelFileError if the path leads to no readable file, DataFileError that names the
// line if a line is damaged or of a newer schema.
std::optional<std::string> read_records(const std::filesystem::path& path,
                                        const std::function<void(const nlohmann::json&)>& visit);

}  // namespace kvfuse::bench
