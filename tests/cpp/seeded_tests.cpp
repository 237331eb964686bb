// Linked into a test program: every test starts from the same random numbers, whichever ran before it.
// PyTorch seeds its default generator anew in each process.
#include <ATen/Context.h>
#include <gtest/gtest.h>

namespace kvfuse {
namespace {

class Seed final : public testing::EmptyTestEventListener {
  void OnTestStart(const testing::TestInfo&) override { at::manual_seed(1); }
};

// Google Test owns the listener.
[[maybe_unused]] const bool kAppended =
    (testing::UnitTest::GetInstance()->listeners().Append(new Seed), true);

}  // namespace
}  // namespace kvfuse
