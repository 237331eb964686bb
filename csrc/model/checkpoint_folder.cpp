#include "csrc/model/checkpoint_folder.h"

#include <map>
#include <set>
#include <span>
#include <utility>

namespace kvfuse {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uint64_t kMaxJsonBytes = 16 << 20;
constexpr std::size_t kMaxJsonDepth = 16;
constexpr const char* kWeightsName = "model.safetensors";
constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr const char* kConfigName = "config.json";
constexpr double kLayerNormEpsilon = 1e-5;

// A JSON object from outside: small, shallow, and no key twice.
json read_object(const fs::path& path) {
  const RegularFile file(path);
  if (file.size() > kMaxJsonBytes)
    throw ModelFileError(path, "expected at most " + std::to_string(kMaxJsonBytes) + " bytes of JSON, got " +
                                   std::to_string(file.size()));
  std::string text(file.size(), '\0');
  file.read(0, std::as_writable_bytes(std::span(text)));
  if (text.find('\0') != std::string::npos) throw ModelFileError(path, "expected JSON, got a NUL byte");

  std::vector<std::set<std::string>> keys(kMaxJsonDepth + 1);  // of the open object at each depth
  const auto check = [&](int depth, json::parse_event_t event, json& parsed) {
    using enum json::parse_event_t;
    const auto level = static_cast<std::size_t>(depth);
    if ((event == object_start || event == array_start) && level >= kMaxJsonDepth)
      throw ModelFileError(path,
                           "expected JSON of at most " + std::to_string(kMaxJsonDepth) + " levels, got more");
    if (event == object_start) keys[level + 1].clear();
    if (event == key && !keys[level].insert(parsed.get<std::string>()).second)
      throw ModelFileError(path, "key " + in_quotes(parsed.get<std::string>()) + " is given twice");
    return true;
  };
  json object;
  try {
    object = json::parse(text, check);
  } catch (const json::parse_error& error) {
    throw ModelFileError(path, "expected valid JSON, got an error at byte " + std::to_string(error.byte));
  } catch (const json::exception&) {
    throw ModelFileError(path, "expected valid JSON, got a number out of range");
  }
  if (!object.is_object())
    throw ModelFileError(path, std::string("expected a JSON object, got ") + object.type_name());
  return object;
}

// True for a link that leads nowhere too: what is named there must open.
bool is_present(const fs::path& path) {
  std::error_code ignored;
  return fs::symlink_status(path, ignored).type() != fs::file_type::not_found;
}

bool is_plain_file_name(const std::string& name) {
  return name.ends_with(".safetensors") && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

std::vector<SafetensorsFile> open_shards(const fs::path& folder) {
  const fs::path index_path = folder / kIndexName;
  const json index = read_object(index_path);
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object() || map->empty())
    throw ModelFileError(index_path, "expected a 'weight_map' object that names a file for each tensor");

  std::map<std::string, std::set<std::string>> names;  // by shard
  for (const auto& [tensor, shard] : map->items()) {
    if (!shard.is_string() || !is_plain_file_name(shard.get<std::string>()))
      throw ModelFileError(index_path,
                           "weight_map, tensor " + in_quotes(tensor) +
                               ": expected the plain name of a .safetensors file in the folder, got " +
                               in_quotes(shard.dump()));
    names[shard.get<std::string>()].insert(tensor);
  }

  std::vector<SafetensorsFile> files;
  for (const auto& [shard, listed] : names) {
    files.push_back(SafetensorsFile::open(folder / shard));
    for (const std::string& tensor : listed)
      if (files.back().find(tensor) == nullptr)
        throw ModelFileError(files.back().path(), "tensor " + in_quotes(tensor) + " is missing, but " +
                                                      kIndexName + " lists it here");
    for (const TensorEntry& entry : files.back().tensors())
      if (!listed.contains(entry.name))
        throw ModelFileError(files.back().path(), "tensor " + in_quotes(entry.name) + ": " + kIndexName +
                                                      " does not list it here");
  }
  return files;
}

fs::path only_safetensors_file(const fs::path& folder) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator item(folder, error), end; !error && item != end; item.increment(error))
    if (item->path().extension() == ".safetensors") found.push_back(item->path());
  if (error) throw ModelFileError(folder, "cannot be listed: " + error.message());
  if (found.size() != 1)
    throw ModelFileError(folder, std::string("expected ") + kWeightsName + ", " + kIndexName +
                                     " or a single .safetensors file, got " + std::to_string(found.size()) +
                                     " .safetensors files");
  return found.front();
}

std::vector<SafetensorsFile> open_one(const fs::path& path) {
  std::vector<SafetensorsFile> files;
  files.push_back(SafetensorsFile::open(path));
  return files;
}

std::vector<SafetensorsFile> open_folder(const fs::path& folder) {
  if (is_present(folder / kWeightsName)) return open_one(folder / kWeightsName);
  if (is_present(folder / kIndexName)) return open_shards(folder);
  return open_one(only_safetensors_file(folder));
}

}  // namespace

CheckpointFolder open_checkpoint_folder(const fs::path& path) {
  std::error_code ignored;
  const bool is_folder = fs::is_directory(path, ignored);
  CheckpointFolder folder{.files = is_folder ? open_folder(path) : open_one(path), .config = {}};
  const fs::path config = (is_folder ? path : path.parent_path()) / kConfigName;
  if (is_present(config)) folder.config = read_object(config);
  return folder;
}

std::optional<bool> check_hugging_face_config(const json& config, const ModelConfig& expected,
                                              const std::function<void(std::string)>& report) {
  if (config.is_null()) return std::nullopt;
  const auto check = [&](const char* field, const json& want) {
    const auto found = config.find(field);
    if (found != config.end() && *found != want)
      report(std::string(kConfigName) + " has " + field + " " + in_quotes(found->dump()) + ", expected " +
             want.dump());
  };
  check("model_type", "gpt2");
  check("n_layer", expected.n_layer);
  check("n_head", expected.n_head);
  check("n_embd", expected.n_embd);
  check("n_positions", expected.block_size);
  check("vocab_size", expected.vocab_size);
  check("layer_norm_epsilon", kLayerNormEpsilon);
  check("scale_attn_weights", true);
  check("scale_attn_by_inverse_layer_idx", false);

  const auto activation = config.find("activation_function");
  if (activation == config.end()) return std::nullopt;
  if (*activation == "gelu_new" || *activation == "gelu_pytorch_tanh") return true;
  if (*activation == "gelu") return false;
  report(std::string(kConfigName) + " has activation_function " + in_quotes(activation->dump()) +
         ", expected gelu_new, gelu_pytorch_tanh or gelu");
  return std::nullopt;
}

}  // namespace kvfuse
