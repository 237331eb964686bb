// How far the run is, on stderr: a bar on a terminal, a line now and then elsewhere.
#pragma once

#include <chrono>
#include <cstdio>
#include <optional>
#include <string>

namespace kvfuse::bench {

class Progress {
 public:
  enum class Style { kBar, kLines, kOff };

  // kOff if quiet, kBar if `out` is a terminal, else kLines.
  static Style style_for(std::FILE* out, bool quiet);

  // `total` counts whatever the work is proportional to; the remaining time is estimated from it.
  Progress(double total, Style style, std::FILE* out = stderr);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `label` names what is being worked on, e.g. "latency v2 T=128".
  void update(double done, const std::string& label);
  // Removes the bar, so that something else can be printed; the next update draws it again.
  void clear();
  // The last line: "done in 1:23", or of a run that was interrupted "stopped after 1:23".
  void finish(bool interrupted);

 private:
  using Clock = std::chrono::steady_clock;

  void write(const std::string& text);
  std::string bar_line(double fraction, const std::string& times, const std::string& label) const;

  double total_;
  Style style_;
  std::FILE* out_;
  Clock::time_point start_ = Clock::now();
  std::optional<Clock::time_point> last_;  // when something was last printed
  bool bar_shown_ = false;
  bool finished_ = false;
};

// "7s", "1:05" (minutes) or "2:03:09".
std::string duration_text(double seconds);

}  // namespace kvfuse::bench
