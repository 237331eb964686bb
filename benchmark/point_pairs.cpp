#include "benchmark/point_pairs.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "benchmark/text.h"

namespace kvfuse::bench {
namespace {

using nlohmann::json;

constexpr std::size_t kMostShownKeys = 4;

using Group = std::tuple<std::string, std::string, std::string>;  // benchmark, version, T

Group group_of(const Point& point) { return {point.benchmark, point.version, point.T}; }

std::string shown(const json& object, const std::string& key) {
  const auto found = object.find(key);
  if (found == object.end()) return "not recorded";
  return printable(found->is_string() ? found->get<std::string>()
                                      : found->dump(-1, ' ', false, json::error_handler_t::replace));
}

// Whether the key is set to nothing or no: the same as before it was recorded.
bool is_unset(const json& object, const std::string& key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() || *found == false;
}

// In three passes: points whose cases are equal; then, within one benchmark, version and T, points that
// differ only in keys that not every case there has, since a newer program records more; and last what is
// left over where there is no choice, to say what differs.
class Pairing {
 public:
  Pairing(PointFile before, PointFile after) : before_(std::move(before)), after_(std::move(after)) {
    for (const auto& [identity, index] : before_.index)
      if (const auto equal = after_.index.find(identity); equal != after_.index.end())
        pair(index, equal->second, /*same=*/true);
    for (const auto& [group, rest] : unpaired()) pair_by_shared_keys(rest);
    for (const auto& [group, rest] : unpaired())
      if (rest.before.size() == 1 && rest.after.size() == 1)
        pair(rest.before[0], rest.after[0], /*same=*/false);
  }

  std::vector<PointPair> take() {
    std::vector<PointPair> pairs(before_.points.size());
    for (const auto& [index, partner] : partners_) {
      pairs[index].difference =
          changes_text(before_.points[index].identity, after_.points[partner.index].identity);
      pairs[index].same = partner.same;
      pairs[index].after = std::move(after_.points[partner.index]);
    }
    for (std::size_t i = 0; i < before_.points.size(); ++i) pairs[i].before = std::move(before_.points[i]);
    for (std::size_t i = 0; i < after_.points.size(); ++i)
      if (!taken_.contains(i))
        pairs.push_back(
            {.before = std::nullopt, .after = std::move(after_.points[i]), .difference = "", .same = false});
    return pairs;
  }

 private:
  struct Partner {
    std::size_t index = 0;
    bool same = false;
  };
  struct Indices {
    std::vector<std::size_t> before, after;
  };

  void pair(std::size_t before, std::size_t after, bool same) {
    partners_[before] = {after, same};
    taken_.insert(after);
  }

  std::map<Group, Indices> unpaired() const {
    std::map<Group, Indices> groups;
    for (std::size_t i = 0; i < before_.points.size(); ++i)
      if (!partners_.contains(i)) groups[group_of(before_.points[i])].before.push_back(i);
    for (std::size_t i = 0; i < after_.points.size(); ++i)
      if (!taken_.contains(i)) groups[group_of(after_.points[i])].after.push_back(i);
    return groups;
  }

  void pair_by_shared_keys(const Indices& group) {
    std::map<std::string, std::size_t> having;
    const auto each = [&](const auto& visit) {
      for (const std::size_t i : group.before) visit(before_.points[i], i, &Indices::before);
      for (const std::size_t i : group.after) visit(after_.points[i], i, &Indices::after);
    };
    each([&](const Point& point, std::size_t, auto) {
      for (const auto& [key, value] : point.identity.items()) ++having[key];
    });
    std::map<std::string, Indices> alike;
    each([&](const Point& point, std::size_t index, auto side) {
      json shared = json::object();
      for (const auto& [key, value] : point.identity.items())
        if (having[key] == group.before.size() + group.after.size()) shared[key] = value;
      (alike[shared.dump(-1, ' ', false, json::error_handler_t::replace)].*side).push_back(index);
    });
    for (const auto& [shared, points] : alike)
      if (points.before.size() == 1 && points.after.size() == 1)
        pair(points.before[0], points.after[0], /*same=*/true);
  }

  PointFile before_, after_;
  std::map<std::size_t, Partner> partners_;  // by index in the old file
  std::set<std::size_t> taken_;              // indices in the new file
};

}  // namespace

std::vector<PointPair> pair_points(PointFile before, PointFile after) {
  return Pairing(std::move(before), std::move(after)).take();
}

std::string changes_text(const json& before, const json& after) {
  std::set<std::string> keys;
  for (const json* object : {&before, &after})
    for (const auto& [key, value] : object->items()) keys.insert(key);
  std::vector<std::string> changes;
  for (const std::string& key : keys) {
    const bool equal = before.contains(key) && after.contains(key) && before[key] == after[key];
    if (equal || (is_unset(before, key) && is_unset(after, key))) continue;
    changes.push_back(fmt::format("{}: {}, then {}", printable(key), shown(before, key), shown(after, key)));
  }
  if (changes.size() > kMostShownKeys) {
    const std::size_t more = changes.size() - kMostShownKeys;
    changes.resize(kMostShownKeys);
    changes.push_back(fmt::format("{} more", more));
  }
  return fmt::format("{}", fmt::join(changes, "; "));
}

}  // namespace kvfuse::bench
