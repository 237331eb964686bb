// GPT-2's weights in a folder: shards, and the index that names them.
#include <filesystem>

#include "tests/cpp/weights_fixture.h"

namespace kvfuse {
namespace {

class ShardedWeightsTest : public WeightsTest {
 protected:
  void SetUp() override {
    Tensors shards[2];
    for (const auto& [name, tensor] : hugging_face_) {
      const int shard = name < "h.1" ? 0 : 1;
      shards[shard][name] = tensor;
      map_[name] = shard == 0 ? "model-00001-of-00002.safetensors" : "model-00002-of-00002.safetensors";
    }
    folder_.write("model-00001-of-00002.safetensors", file_bytes(shards[0]));
    folder_.write("model-00002-of-00002.safetensors", file_bytes(shards[1]));
  }
  void write_index() {
    std::string json;
    for (const auto& [name, shard] : map_)
      json += (json.empty() ? "" : ",") + ("\"" + name + "\":\"" + shard + "\"");
    folder_.write(kIndex, R"({"metadata":{"total_size":1},"weight_map":{)" + json + "}}");
  }
  std::string refusal_of_index(const std::string& json) {
    folder_.write(kIndex, json);
    return refusal();
  }

  const std::string kIndex = "model.safetensors.index.json";
  std::map<std::string, std::string> map_;
};

TEST_F(ShardedWeightsTest, ShardsAreOneModel) {
  write_index();
  expect_weights(load(), tensors_);
}

TEST_F(ShardedWeightsTest, IndexAndShardsMustAgree) {
  map_["h.9.ln_1.weight"] = "model-00002-of-00002.safetensors";
  write_index();
  EXPECT_EQ(refusal(), "/model-00002-of-00002.safetensors: tensor 'h.9.ln_1.weight' is missing, but " +
                           kIndex + " lists it here");
  map_.erase("h.9.ln_1.weight");
  map_.erase("wte.weight");
  write_index();
  EXPECT_EQ(refusal(),
            "/model-00002-of-00002.safetensors: tensor 'wte.weight': " + kIndex + " does not list it here");
  map_["wte.weight"] = "model-00003-of-00003.safetensors";
  write_index();
  EXPECT_TRUE(refusal().ends_with("does not list it here"));
  std::filesystem::remove(folder_.path() / "model-00001-of-00002.safetensors");
  EXPECT_EQ(refusal(), "/model-00001-of-00002.safetensors: cannot be opened: No such file or directory");
}

TEST_F(ShardedWeightsTest, IndexIsChecked) {
  const std::string no_map =
      "/" + kIndex + ": expected a 'weight_map' object that names a file for each tensor";
  EXPECT_EQ(refusal_of_index("{}"), no_map);
  EXPECT_EQ(refusal_of_index(R"({"weight_map":[]})"), no_map);
  EXPECT_EQ(refusal_of_index(R"({"weight_map":{}})"), no_map);
  const std::pair<std::string, std::string> names[] = {
      {R"("../m.safetensors")", R"('"../m.safetensors"')"},
      {R"("/m.safetensors")", R"('"/m.safetensors"')"},
      {R"("m.bin")", R"('"m.bin"')"},
      {"1", "'1'"},
      {R"("m\u0000.safetensors")", R"('"m\u0000.safetensors"')"}};
  for (const auto& [name, shown] : names)
    EXPECT_EQ(
        refusal_of_index(R"({"weight_map":{"a":)" + name + "}}"),
        "/" + kIndex +
            ": weight_map, tensor 'a': expected the plain name of a .safetensors file in the folder, got " +
            shown);
}

TEST_F(ShardedWeightsTest, FolderMustNameItsWeights) {
  EXPECT_EQ(refusal(), ": expected model.safetensors, " + kIndex +
                           " or a single .safetensors file, got 2 .safetensors files");
  write_index();
  folder_.write("model.safetensors", file_bytes(as_hugging_face(tensors_)));
  expect_weights(load(), tensors_);  // the whole file comes before the index
  std::filesystem::remove(folder_.path() / "model.safetensors");
  std::filesystem::create_symlink("nowhere", folder_.path() / "model.safetensors");
  EXPECT_EQ(refusal(), "/model.safetensors: cannot be opened: No such file or directory");
}

}  // namespace
}  // namespace kvfuse
