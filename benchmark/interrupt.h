// Ctrl-C and SIGTERM end a run between two steps, so that what was measured is kept.
#pragma once

namespace kvfuse::bench {

// Call once, before any other thread exists. From now on the first SIGINT or SIGTERM is only noted; a second
// one ends the process at once with 128 + signal. SIGXFSZ and SIGPIPE are ignored: the failed write reports
// the error.
void install_interrupt_handlers();

// The signal that asked for the end, or 0.
int interrupted_signal();

}  // namespace kvfuse::bench
