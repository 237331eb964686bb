// Progress output and the handling of signals.
#include "benchmark/progress.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <string>

#include "benchmark/interrupt.h"

namespace kvfuse::bench {
namespace {

// What a progress of `total` writes while `body` goes on with it, and at its end.
template <typename Body>
std::string written(double total, Progress::Style style, Body body) {
  std::FILE* file = std::tmpfile();
  {
    Progress progress(total, style, file);
    body(progress);
  }
  std::string text(4096, '\0');
  std::rewind(file);
  text.resize(std::fread(text.data(), 1, text.size(), file));
  std::fclose(file);
  return text;
}

std::string output_of(Progress::Style style, bool interrupted = false) {
  return written(4, style, [&](Progress& progress) {
    for (int i = 0; i <= 4; ++i) progress.update(i, "latency v1 T=32");
    progress.finish(interrupted);
    progress.update(4, "after the end");
  });
}

TEST(Progress, LinesAreRareAndEndWithOne) {
  EXPECT_EQ(output_of(Progress::Style::kLines), "  0%  latency v1 T=32\ndone in 0s\n");
}

TEST(Progress, AnInterruptedRunIsNotDone) {
  EXPECT_EQ(output_of(Progress::Style::kLines, /*interrupted=*/true),
            "  0%  latency v1 T=32\nstopped after 0s\n");
}

TEST(Progress, EstimatesFromAHundredthOn) {
  const auto line_at = [](double done) {
    return written(1000, Progress::Style::kLines, [&](Progress& progress) { progress.update(done, "v1"); });
  };
  EXPECT_EQ(line_at(9), "  1%  v1\n");
  EXPECT_EQ(line_at(10), "  1%  0s left  v1\n");
}

TEST(Progress, ABarIsRemovedAtTheEnd) {
  EXPECT_EQ(output_of(Progress::Style::kBar),
            "\r\x1b[K[........................]   0%  latency v1 T=32\r\x1b[Kdone in 0s\n");
}

TEST(Progress, Off) {
  EXPECT_EQ(output_of(Progress::Style::kOff), "");
  std::FILE* file = std::tmpfile();
  EXPECT_EQ(Progress::style_for(file, true), Progress::Style::kOff);
  EXPECT_EQ(Progress::style_for(file, false), Progress::Style::kLines);
  std::fclose(file);
}

TEST(Progress, Durations) {
  EXPECT_EQ(duration_text(7.4), "7s");
  EXPECT_EQ(duration_text(65), "1:05");
  EXPECT_EQ(duration_text(7389), "2:03:09");
  EXPECT_EQ(duration_text(-1), "?");
  EXPECT_EQ(duration_text(0.0 / 0.0), "?");
}

// The status of a child that runs `body`.
template <typename Body>
int status_of(Body body) {
  const pid_t child = ::fork();
  if (child == 0) {
    install_interrupt_handlers();
    body();
    ::_exit(interrupted_signal());
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(Interrupt, TheFirstSignalIsNotedTheSecondEnds) {
  EXPECT_EQ(status_of([] {}), 0);
  // To the process, as a terminal does; a thread of its own takes it a moment later.
  const auto send = [](int number) {
    ::kill(::getpid(), number);
    for (int i = 0; i < 500 && interrupted_signal() == 0; ++i) ::usleep(10000);
  };
  const auto send_again = [](int number) {
    ::kill(::getpid(), number);
    ::usleep(5000000);  // ended long before
  };
  EXPECT_EQ(status_of([&] { send(SIGINT); }), SIGINT);
  EXPECT_EQ(status_of([&] { send(SIGTERM); }), SIGTERM);
  EXPECT_EQ(status_of([&] { send(SIGINT), send_again(SIGINT); }), 130);
  EXPECT_EQ(status_of([&] { send(SIGINT), send_again(SIGTERM); }), 143);
  EXPECT_EQ(status_of([] { std::raise(SIGXFSZ), std::raise(SIGPIPE); }), 0);
}

}  // namespace
}  // namespace kvfuse::bench
