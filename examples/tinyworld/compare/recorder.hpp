// SPDX-License-Identifier: MIT
// Recorder: measures the model at a few moments of its training, and keeps everything in the run's JSON file.
#pragma once

#include <string>
#include <vector>

#include <lpo/io/json.hpp>
#include <lpo/train/progress.hpp>

#include "../demo/studio.hpp"
#include "options.hpp"
#include "work.hpp"

namespace compare {

namespace tw = tinyworld;

class Recorder {
 public:
  Recorder(demo::Studio& studio, const Options& options);

  /// Adds what training has cost; the CPU time is read from the clock.
  void add(const Work& work) { work_ += work; }

  /// The trainers' progress callback: measures when it is time to, and false when the time is used up.
  bool operator()(const lpo::Progress& progress);

  /// The last measurement, with all captions. Writes the file as done.
  void finish(bool adapters = true);

 private:
  struct Scores {
    std::vector<double> score, aesthetic, accuracy;  ///< by picture, those of a caption in a row
    std::vector<double> distance;                    ///< by caption: mean_pairwise_distance of its pictures
  };

  double trained_seconds() const { return cpu_seconds() - begin_ - paused_; }
  Scores measure(index_t captions, bool adapters);
  void add_point(double trained, std::vector<double> scores);
  void write(bool done) const;

  demo::Studio& studio_;
  Options options_;
  std::vector<std::string> captions_;
  Work work_;
  double begin_ = 0, paused_ = 0;
  index_t iteration_ = -1;
  std::size_t mark_ = 0;
  lpo::OrderedJson points_ = lpo::OrderedJson::array(), final_;
};

}  // namespace compare
