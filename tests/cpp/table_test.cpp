// Every format of a table, with cells that could break it.
#include "benchmark/table.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace kvfuse::bench {
namespace {

const Table kTable = {{"version", "T", "ms", "speed-up"},
                      {{"v0", "32", "1200.5", "-"}, {"v1", "128", "3.1 ± 0.2", "387.1x"}}};

TEST(Table, Text) {
  EXPECT_EQ(render(kTable, TableFormat::kTable),
            "version    T         ms  speed-up\n"
            "-------  ---  ---------  --------\n"
            "v0        32     1200.5         -\n"
            "v1       128  3.1 ± 0.2    387.1x\n");
}

TEST(Table, Markdown) {
  EXPECT_EQ(render(kTable, TableFormat::kMarkdown),
            "| version |   T |        ms | speed-up |\n"
            "| ------- | --: | --------: | -------: |\n"
            "| v0      |  32 |    1200.5 |        - |\n"
            "| v1      | 128 | 3.1 ± 0.2 |   387.1x |\n");
}

TEST(Table, Csv) {
  EXPECT_EQ(render(kTable, TableFormat::kCsv),
            "version,T,ms,speed-up\nv0,32,1200.5,-\nv1,128,3.1 ± 0.2,387.1x\n");
  EXPECT_EQ(render({{"a,b", "c"}, {{"say \"x\"", "two\nlines"}}}, TableFormat::kCsv),
            "\"a,b\",c\n\"say \"\"x\"\"\",\"two\nlines\"\n");
}

TEST(Table, JsonKeepsNumbersOfNumericColumns) {
  EXPECT_EQ(render(kTable, TableFormat::kJson),
            R"([
  {
    "version": "v0",
    "T": 32,
    "ms": "1200.5",
    "speed-up": null
  },
  {
    "version": "v1",
    "T": 128,
    "ms": "3.1 ± 0.2",
    "speed-up": "387.1x"
  }
]
)");
}

TEST(Table, HostileCellsStayInert) {
  const Table hostile = {{"na|me"}, {{"<script>\x1b[31m|`x`\n"}, {"bad \xff byte"}}};
  const std::string text = render(hostile, TableFormat::kTable);
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  const std::string markdown = render(hostile, TableFormat::kMarkdown);
  EXPECT_NE(markdown.find("&lt;script> [31m\\|\\`x\\`"), std::string::npos) << markdown;
  EXPECT_NE(markdown.find("na\\|me"), std::string::npos);
  EXPECT_NO_THROW(render(hostile, TableFormat::kJson));
}

TEST(Table, NoRows) {
  const Table empty = {{"a", "long header"}, {}};
  EXPECT_EQ(render(empty, TableFormat::kTable), "a    long header\n---  -----------\n");
  EXPECT_EQ(render(empty, TableFormat::kCsv), "a,long header\n");
  EXPECT_EQ(render(empty, TableFormat::kJson), "[]\n");
}

TEST(Table, ARowOfAnotherLengthIsRefused) {
  EXPECT_THROW(render({{"a", "b"}, {{"1"}}}, TableFormat::kTable), std::invalid_argument);
}

TEST(Table, FormatNamesFollowTheEnum) {
  ASSERT_EQ(table_format_names().size(), 4U);
  EXPECT_EQ(table_format_names()[static_cast<std::size_t>(TableFormat::kMarkdown)], "md");
  EXPECT_EQ(table_format_names()[static_cast<std::size_t>(TableFormat::kJson)], "json");
}

}  // namespace
}  // namespace kvfuse::bench
