#include "benchmark/stages.h"

#include <stdexcept>

#include "benchmark/text.h"
#include "csrc/versions/registry.h"

namespace kvfuse::bench {

std::string Stage::name() const { return std::string(strategy->name) + (decode ? "_decode" : "_prefill"); }

std::vector<Stage> all_stages() {
  std::vector<Stage> stages;
  for (const Strategy& version : versions())
    stages.insert(stages.end(), {{&version, /*decode=*/false}, {&version, /*decode=*/true}});
  return stages;
}

std::vector<std::string> stage_words() {
  std::vector<std::string> words;
  for (const Strategy& version : versions()) words.emplace_back(version.name);
  for (const Stage& stage : all_stages()) words.push_back(stage.name());
  return words;
}

Stage find_stage(std::string_view word) {
  for (const Stage& stage : all_stages())
    if (word == stage.name() || (stage.decode && word == stage.strategy->name)) return stage;
  throw std::invalid_argument("expected a stage (" + joined(stage_words()) + "), got " + in_quotes(word));
}

}  // namespace kvfuse::bench
