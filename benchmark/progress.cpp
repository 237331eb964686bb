#include "benchmark/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

namespace kvfuse::bench {
namespace {

constexpr std::chrono::seconds kBetweenLines{5};
constexpr std::chrono::milliseconds kBetweenBars{100};
constexpr int kBarCells = 24;

int terminal_columns(std::FILE* out) {
  winsize size = {};
  return ::ioctl(::fileno(out), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

std::string duration_text(double seconds) {
  if (!(seconds >= 0.0 && seconds < 1e9)) return "?";
  const long total = std::lround(seconds);
  if (total < 60) return fmt::format("{}s", total);
  if (total < 3600) return fmt::format("{}:{:02}", total / 60, total % 60);
  return fmt::format("{}:{:02}:{:02}", total / 3600, total / 60 % 60, total % 60);
}

Progress::Style Progress::style_for(std::FILE* out, bool quiet) {
  return quiet ? Style::kOff : ::isatty(::fileno(out)) != 0 ? Style::kBar : Style::kLines;
}

Progress::Progress(double total, Style style, std::FILE* out) : total_(total), style_(style), out_(out) {}

Progress::~Progress() { clear(); }

// A reader that has gone away must not end the run.
void Progress::write(const std::string& text) { std::fputs(text.c_str(), out_); }

std::string Progress::bar_line(double fraction, const std::string& times, const std::string& label) const {
  const int full = static_cast<int>(fraction * kBarCells);
  std::string line =
      fmt::format("[{}{}] {:3.0f}%{}  {}", std::string(static_cast<std::size_t>(full), '#'),
                  std::string(static_cast<std::size_t>(kBarCells - full), '.'), 100 * fraction, times, label);
  return line.substr(0, static_cast<std::size_t>(terminal_columns(out_) - 1));
}

void Progress::update(double done, const std::string& label) {
  if (style_ == Style::kOff || finished_) return;
  const Clock::time_point now = Clock::now();
  const bool due =
      !last_ || (style_ == Style::kBar ? now - *last_ >= kBetweenBars : now - *last_ >= kBetweenLines);
  if (!due && !(style_ == Style::kBar && !bar_shown_)) return;
  last_ = now;
  const double fraction = total_ > 0.0 ? std::clamp(done / total_, 0.0, 1.0) : 0.0;
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  constexpr double kLeastToEstimate = 0.01;
  const std::string times = fraction >= kLeastToEstimate
                                ? fmt::format("  {} left", duration_text(elapsed / fraction - elapsed))
                                : std::string();
  if (style_ == Style::kBar) {
    write("\r\x1b[K" + bar_line(fraction, times, label));
    bar_shown_ = true;
  } else {
    write(fmt::format("{:3.0f}%{}  {}\n", 100 * fraction, times, label));
  }
  std::fflush(out_);
}

void Progress::clear() {
  if (!bar_shown_) return;
  write("\r\x1b[K");
  std::fflush(out_);
  bar_shown_ = false;
}

void Progress::finish(bool interrupted) {
  if (style_ == Style::kOff || finished_) return;
  clear();
  finished_ = true;
  write(fmt::format("{} {}\n", interrupted ? "stopped after" : "done in",
                    duration_text(std::chrono::duration<double>(Clock::now() - start_).count())));
  std::fflush(out_);
}

}  // namespace kvfuse::bench
