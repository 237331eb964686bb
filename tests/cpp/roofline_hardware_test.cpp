// The registry of machines: figures, look-ups, and what its reader refuses.
#include "csrc/roofline/hardware.h"

#include <gtest/gtest.h>

#include "tests/cpp/error_of.h"

namespace kvfuse::roofline {
namespace {

const HardwareRegistry& registry() { return HardwareRegistry::builtin(); }

struct Critical {
  const char* name;
  Profile profile;
  Precision precision;
  double intensity;
};

TEST(Hardware, CriticalIntensities) {
  using enum Precision;
  constexpr Profile kRef = Profile::kReference;
  constexpr Profile kVen = Profile::kVendor;
  // Peak over bandwidth, each worked out from the published table or the data sheets.
  const Critical cases[] = {
      {"gb10", kRef, kFp16, 216.03},    {"gb10", kRef, kFp8, 432.06},     {"gb10", kRef, kNvfp4, 3484.32},
      {"gb10", kRef, kInt4, 864.11},    {"b200", kRef, kFp16, 22.5},      {"b200", kRef, kFp8, 562.5},
      {"b200", kRef, kNvfp4, 1125},     {"b200", kRef, kInt4, 1125},      {"h100", kRef, kFp16, 40},
      {"h100", kRef, kFp8, 590.75},     {"h100", kRef, kInt4, 1181.49},   {"a100", kRef, kFp16, 153.02},
      {"a100", kRef, kInt4, 306.03},    {"a6000", kRef, kBf16, 406.25},   {"a6000", kVen, kBf16, 201.56},
      {"a100-40", kVen, kFp16, 200.64}, {"a100-80", kVen, kFp16, 153.02}, {"h100", kVen, kFp16, 295.34},
      {"h200", kVen, kFp16, 206.13},    {"h200", kVen, kFp8, 412.27},     {"b200", kVen, kFp16, 281.25},
      {"gb10", kVen, kNvfp4, 1831.5},   {"rtx4090", kVen, kFp16, 163.89}, {"rtx4090", kVen, kFp32, 81.94},
  };
  for (const Critical& c : cases)
    EXPECT_NEAR(critical_intensity(registry().find(c.name, c.profile), c.precision), c.intensity, 0.006)
        << c.name << " " << precision_name(c.precision);
}

TEST(Hardware, EveryFigureIsCitedAndPlausible) {
  EXPECT_EQ(registry().names(), (std::vector<std::string>{"a6000", "rtx4090", "a100-40", "a100-80", "h100",
                                                          "h200", "b200", "gb10"}));
  for (const auto* machines : {&registry().all(), &registry().with_reference_figures()})
    for (const Hardware& hardware : *machines) {
      EXPECT_GT(hardware.bandwidth_gb_s.source.size(), 10U) << hardware.name;
      EXPECT_GT(hardware.bandwidth_gb_s.value, 100);
      for (const auto& [precision, peak] : hardware.peak_tflop_s) EXPECT_GT(peak.source.size(), 10U);
      EXPECT_TRUE(hardware.memory_gb.has_value());
    }
  // Dense rates double with every halving of the format.
  for (const Hardware& hardware : registry().all())
    if (hardware.is_native(Precision::kFp8)) {
      EXPECT_NEAR(hardware.peak_tflop_s.at(Precision::kFp8).value,
                  2 * hardware.peak_tflop_s.at(Precision::kFp16).value, 0.2)
          << hardware.name;
    }
}

TEST(Hardware, NamesAndAliases) {
  const std::pair<const char*, const char*> names[] = {
      {"GB10", "gb10"},   {"b10", "gb10"},         {"B10", "gb10"},         {"BLACKWELL_B10", "gb10"},
      {"h100", "h100"},   {"H100-80GB", "h100"},   {"a100", "a100-80"},     {"A100-40GB", "a100-40"},
      {"A6000", "a6000"}, {"rtx_4090", "rtx4090"}, {"RTX 4090", "rtx4090"}, {"dgx-spark", "gb10"}};
  for (const auto& [asked, name] : names) EXPECT_EQ(registry().find(asked).name, name) << asked;
}

TEST(Hardware, AnUnknownNameNamesTheNearest) {
  EXPECT_EQ(
      error_of([] { registry().find("h1000"); }),
      "roofline: hardware: expected one of a6000, rtx4090, a100-40, a100-80, h100, h200, b200, gb10, got "
      "\"h1000\" (did you mean h100?)");
  EXPECT_NE(error_of([] { registry().find("b2000"); }).find("did you mean b200?"), std::string::npos);
  EXPECT_NE(error_of([] { registry().find("RTX-4080"); }).find("did you mean rtx4090?"), std::string::npos);
  EXPECT_NE(error_of([] { registry().find(std::string(1 << 20, 'x') + "\n"); }).find("..."),
            std::string::npos);
  EXPECT_NE(
      error_of([] { registry().find("h200", Profile::kReference); }).find("published reference figures"),
      std::string::npos);
}

TEST(Hardware, WhatIsNotNativeIsWidened) {
  const Peak int4_on_h100 = peak_of(registry().find("h100"), Precision::kInt4);
  EXPECT_TRUE(int4_on_h100.storage_only);
  EXPECT_EQ(int4_on_h100.computed_in, Precision::kFp16);
  EXPECT_EQ(int4_on_h100.flops_per_s, 989.4e12);
  const Peak fp8_on_h100 = peak_of(registry().find("h100"), Precision::kFp8);
  EXPECT_FALSE(fp8_on_h100.storage_only);
  EXPECT_EQ(peak_of(registry().find("a100"), Precision::kFp8).flops_per_s, 312e12);
  EXPECT_EQ(peak_of(registry().find("a6000", Profile::kReference), Precision::kFp16).computed_in,
            Precision::kBf16);
}

// --- A user's file ---

std::string file(const std::string& machine) {
  return R"({"schema_version": 1, "hardware": [)" + machine + "]}";
}

const char* const kMine = R"({"name": "mine", "title": "My GPU", "kind": "gpu", "aliases": ["my-gpu"],
  "bandwidth_gb_s": {"value": 500, "source": "its data sheet"},
  "peak_tflop_s": {"fp16": {"value": 50, "source": "its data sheet"}}})";

std::string add_error(const std::string& text) {
  HardwareRegistry mine = registry();
  const std::string error = error_of([&] { mine.add(text, "my.json"); });
  EXPECT_EQ(error.empty(), mine.all().size() == registry().all().size() + 1) << "all or nothing";
  return error;
}

std::string with(std::string from, const std::string& to) {
  std::string text = kMine;
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return file(text.replace(at, from.size(), to));
}

TEST(HardwareFile, AddsAMachine) {
  HardwareRegistry mine = registry();
  mine.add(file(kMine), "my.json");
  const Hardware& found = mine.find("MY GPU");
  EXPECT_EQ(found.title, "My GPU");
  EXPECT_EQ(found.profile, Profile::kUser);
  EXPECT_EQ(critical_intensity(found, Precision::kFp16), 100);
  EXPECT_FALSE(found.memory_gb.has_value());
  EXPECT_EQ(error_of([] { registry().find("mine"); }).substr(0, 9), "roofline:");
}

TEST(HardwareFile, AMachineOfAKnownNameReplacesIt) {
  HardwareRegistry mine = registry();
  std::string text = kMine;
  mine.add(file(text.replace(text.find("mine"), 4, "h100").replace(text.find("my-gpu"), 6, "h100")),
           "my.json");
  EXPECT_EQ(mine.find("h100").bandwidth_gb_s.value, 500);
  EXPECT_EQ(mine.all().size(), registry().all().size());
}

TEST(HardwareFile, PublishedFiguresGoWithTheMachineThatIsReplaced) {
  const std::string renamed = [] {
    std::string text = kMine;
    return text.replace(text.find("mine"), 4, "h100").replace(text.find("my-gpu"), 6, "h100");
  }();
  HardwareRegistry without = registry();
  without.add(file(renamed), "my.json");
  EXPECT_NE(error_of([&] { without.find("h100", Profile::kReference); }).find("published reference figures"),
            std::string::npos);
  const std::string reference = R"(, "reference": {"bandwidth_gb_s": {"value": 7, "source": "a study"},
    "peak_tflop_s": {"fp16": {"value": 1, "source": "a study"}}}})";
  HardwareRegistry with_reference = registry();
  with_reference.add(file(renamed.substr(0, renamed.rfind('}')) + reference), "my.json");
  EXPECT_EQ(with_reference.find("h100", Profile::kReference).bandwidth_gb_s.value, 7);
  EXPECT_EQ(with_reference.with_reference_figures().size(), registry().with_reference_figures().size());
}

TEST(HardwareFile, FiguresOfAnotherKindAreNotPassedOff) {
  HardwareRegistry mine = registry();
  mine.add(file(kMine), "my.json");
  EXPECT_EQ(mine.find("mine", Profile::kUser).name, "mine");
  EXPECT_EQ(mine.find("mine").profile, Profile::kUser);
  EXPECT_EQ(error_of([&] { mine.find("h100", Profile::kCalibrated); }),
            "roofline: hardware h100: expected calibrated figures, got vendor ones only");
}

TEST(HardwareFile, RefusesAFileOfAThousandMachinesAndOne) {
  std::string machines = kMine;
  for (int i = 0; i < 1000; ++i) machines += "," + std::string(kMine);
  EXPECT_EQ(add_error(file(machines)), "my.json.hardware: expected at most 1000 machines, got 1001");
}

struct BadFile {
  std::string text;
  const char* error;
};

TEST(HardwareFile, RefusesWhatItDoesNotSayAsItShould) {
  const BadFile files[] = {
      {with("500", "-1"),
       "my.json.hardware[0].bandwidth_gb_s.value: expected a positive finite number, got -1"},
      {with("500", "0"),
       "my.json.hardware[0].bandwidth_gb_s.value: expected a positive finite number, got 0"},
      {with("500", "\"fast\""),
       "my.json.hardware[0].bandwidth_gb_s.value: expected a positive finite number, got \"fast\""},
      {with("500", "true"),
       "my.json.hardware[0].bandwidth_gb_s.value: expected a positive finite number, got true"},
      {with("500", "null"),
       "my.json.hardware[0].bandwidth_gb_s.value: expected a positive finite number, got null"},
      {with("{\"value\": 500, \"source\": \"its data sheet\"}", "500"),
       "my.json.hardware[0].bandwidth_gb_s: expected an object, got 500"},
      {with(", \"source\": \"its data sheet\"", ""),
       "my.json.hardware[0].bandwidth_gb_s: expected the key \"source\", got none"},
      {with("its data sheet", ""),
       "my.json.hardware[0].bandwidth_gb_s.source: expected a string that is not empty, got \"\""},
      {with("\"title\"", "\"titel\""),
       "my.json.hardware[0]: expected no key \"titel\" (did you mean \"title\"?)"},
      {with("\"title\": \"My GPU\"", "\"name\": \"twice\""),
       "my.json: expected every key once in its object, got \"name\" twice"},
      {with("\"fp16\"", "\"fp15\""),
       "my.json.hardware[0].peak_tflop_s: expected no key \"fp15\" (did you mean \"fp16\"?)"},
      {with("{\"fp16\": {\"value\": 50, \"source\": \"its data sheet\"}}", "{}"),
       "my.json.hardware[0].peak_tflop_s: expected a peak for at least one format, got none"},
      {with("\"gpu\"", "\"tpu\""), "my.json.hardware[0].kind: expected \"gpu\" or \"cpu\", got \"tpu\""},
      {with("[\"my-gpu\"]", "[1]"),
       "my.json.hardware[0].aliases: expected strings that are not empty, got 1"},
      {with("[\"my-gpu\"]", "\"my-gpu\""), "my.json.hardware[0].aliases: expected an array, got \"my-gpu\""},
      {with("my-gpu", "H100"),
       "roofline: hardware mine: expected a name and aliases of its own, got \"H100\", which means h100"},
      {file(std::string(kMine) + "," + kMine),
       "my.json.hardware[1].name: expected every machine once, got \"mine\" twice"},
      {"[]", "my.json: expected an object, got an array"},
      {"{\"schema_version\": 2, \"hardware\": []}",
       "my.json.schema_version: expected a whole number from 1 to 1, got 2"},
      {"{\"schema_version\": 1.5, \"hardware\": []}",
       "my.json.schema_version: expected a whole number from 1 to 1, got 1.5"},
      {"{\"schema_version\": 18446744073709551615, \"hardware\": []}",
       "my.json.schema_version: expected a whole number from 1 to 1, got 18446744073709551615"},
      {"{\"schema_version\": 1, \"hardware\": {}}", "my.json.hardware: expected an array, got an object"},
  };
  for (const BadFile& bad : files) EXPECT_EQ(add_error(bad.text), bad.error);
}

TEST(HardwareFile, RefusesWhatIsNoJson) {
  for (const std::string& text : {std::string(), std::string("{"), with("500", "NaN"), with("500", "1e999"),
                                  with("500", "0500"), file(kMine) + "x", std::string("\xff")})
    EXPECT_NE(add_error(text).find("my.json: expected JSON, got what the parser calls"), std::string::npos);
  EXPECT_EQ(add_error(std::string(1000000, '[')), "my.json: expected JSON nested at most 16 deep, got more");
  EXPECT_EQ(add_error(std::string((16 << 20) + 1, ' ')),
            "my.json: expected at most 16777216 bytes of JSON, got 16777217");
}

TEST(HardwareFile, SurvivesEveryTruncation) {
  const std::string whole = file(kMine);
  for (std::size_t length = 0; length < whole.size(); ++length)
    EXPECT_NE(add_error(whole.substr(0, length)), "") << length;
}

}  // namespace
}  // namespace kvfuse::roofline
