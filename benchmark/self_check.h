// `bench_runner --self-check`: what was built, which instruction set runs, and each operator exercised once.
#pragma once

namespace kvfuse::bench {

// Prints to stdout; false if an operator gave a wrong result.
bool self_check();

}  // namespace kvfuse::bench
