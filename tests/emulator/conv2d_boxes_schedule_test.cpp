// SPDX-License-Identifier: MIT
// Who works on what in a convolution on boxes of pixels: every step of every tile once, parts joined in order, and the
// data gradient that the phases describe, on the host against the Reference device. The products themselves need
// Hopper.
#include <lpo/backend/cuda/conv2d_boxes_schedule.cuh>
#include <lpo/backend/reference/conv2d.hpp>

#include <map>
#include <vector>

#include "backend/conv2d_cases.hpp"

using namespace lpo::detail;
using conv2d_cases::random_values, conv2d_cases::shape, conv2d_cases::Conv2dShape;
using lpo::index_t;

namespace {

/// Adds to dx what steps work.first .. work.last - 1 of a tile do, all columns at once.
void add_steps(const BoxedConvolution& p, const BoxPlan& plan, const BoxWork& work, const Conv2dShape& s,
               const std::vector<double>& dy, const std::vector<double>& weight, std::vector<double>& dx) {
  const BoxPhase& phase = p.phase_of<ConvPass::data>(work.tile);
  const BoxOrigin at(p, p.line_of<ConvPass::data>(work.tile));
  for (int step = work.first; step < work.last; ++step) {
    const int tap = step / p.chunks, tap_h = tap / phase.taps_w, tap_w = tap % phase.taps_w;
    const index_t used = phase.first_tap + tap_h * p.tap_step_h + tap_w * p.tap_step_w;
    for (int row = 0; row < 128 * plan.blocks; ++row) {
      const int line = row >> p.box_w_log2, n = at.n + (line >> p.box_h_log2);
      const int i = at.i + (line & ((1 << p.box_h_log2) - 1)), j = at.j + (row & ((1 << p.box_w_log2) - 1));
      const int to_i = i * p.out_step + phase.out_i, to_j = j * p.out_step + phase.out_j;
      const int from_i = i * p.step + phase.shift_h + p.direction * tap_h;
      const int from_j = j * p.step + phase.shift_w + p.direction * tap_w;
      if (n >= s.n || to_i >= s.h || to_j >= s.w) continue;
      if (from_i < 0 || from_j < 0 || from_i >= s.out_h() || from_j >= s.out_w()) continue;
      for (index_t o = step % p.chunks * 64; o < std::min<index_t>(s.o, (step % p.chunks + 1) * 64); ++o)
        for (index_t c = 0; c < s.c; ++c)
          dx[static_cast<std::size_t>(((n * s.h + to_i) * s.w + to_j) * s.c + c)] +=
              dy[static_cast<std::size_t>(((n * s.out_h() + from_i) * s.out_w() + from_j) * s.o + o)] *
              weight[static_cast<std::size_t>((o * s.kernel_h * s.kernel_w + used) * s.c + c)];
    }
  }
}

/// Walks a launch: checks that it covers all steps once, and that the parts are those that BoxParts tells of.
template <ConvPass pass, class Use>
void walk(const BoxedConvolution& p, int blocks, const Use& use) {
  std::map<std::pair<int, int>, int> seen;           // (tile, step)
  std::map<int, std::map<int, index_t>> left_parts;  // tile, first step: part
  std::map<index_t, int> writers;
  for (int block = 0; block < blocks; ++block) {
    BoxSchedule<pass> schedule(p, block, blocks);
    BoxWork work;
    while (schedule.next(p, work)) {
      CHECK(work.steps == p.phase_of<pass>(work.tile).k_steps);
      for (int step = work.first; step < work.last; ++step) ++seen[{work.tile, step}];
      if (!work.is_whole()) {
        left_parts[work.tile][work.first] = 2 * block + (work.first == 0);
        ++writers[2 * block + (work.first == 0)];
      }
      use(work);
    }
  }
  index_t steps = 0;
  for (int tile = 0; tile < p.tiles(); ++tile) {
    CHECK(p.steps_before<pass>(tile) == steps);
    for (int step = 0; step < p.phase_of<pass>(tile).k_steps; ++step, ++steps) CHECK(seen[{tile, step}] == 1);
    if (tile < p.whole_tiles) {
      CHECK(left_parts.count(tile) == 0);
      continue;
    }
    BoxParts<pass> parts(p, tile, blocks);
    CHECK(parts.is_one_blocks() == (left_parts.count(tile) == 0));
    if (parts.is_one_blocks()) continue;
    index_t part = 0;
    for (const auto& [first, left] : left_parts[tile]) {
      CHECK(parts.next(p, part));
      CHECK(part == left);
    }
    CHECK_FALSE(parts.next(p, part));
  }
  CHECK(p.steps_before<pass>(p.tiles()) == steps);
  for (const auto& [part, count] : writers) CHECK(count == 1);
}

/// Plans that a device might get: the chosen one, and others that cut differently.
template <ConvPass pass>
std::vector<BoxPlan> plans(const BoxedConvolution& p, int processors) {
  return {choose_plan<pass>(p, processors), {1, 128, 0}, {2, 160, processors}, {1, 160, processors}};
}

}  // namespace

TEST_CASE("the phases of a data gradient are the gradient, every step done once") {
  for (const Conv2dShape& s :
       {shape(2, 8, 8, 8, 72, 3, 2, 1, 1), shape(1, 15, 18, 8, 16, 3, 2, 0, 1), shape(1, 10, 11, 8, 8, 1, 2, 0, 0),
        shape(1, 17, 13, 8, 8, 5, 3, 2, 1), shape(3, 7, 5, 8, 136, 3, 1, 1, 1), shape(1, 1, 1, 8, 8, 3, 2, 1, 1),
        shape(20, 16, 16, 8, 8, 3, 2, 1, 1), shape(1, 6, 6, 8, 8, 2, 2, 0, 0)}) {
    CAPTURE(s.h);
    CAPTURE(s.stride);
    CAPTURE(s.kernel_h);
    const auto dy = random_values<double>(s.n * s.out_h() * s.out_w() * s.o, 1);
    const auto weight = random_values<double>(s.o * s.kernel_h * s.kernel_w * s.c, 2);
    std::vector<double> expected(static_cast<std::size_t>(s.n * s.h * s.w * s.c));
    lpo::Context<lpo::Reference> reference(1);
    lpo::kernel::Conv2d<lpo::Reference>::backward_data(reference, s, dy.data(), weight.data(), expected.data(), false);
    for (const int processors : {3, 132})
      for (std::size_t choice = 0; choice < 4; ++choice) {
        std::vector<double> dx(expected.size());
        for (int first = 0; first < s.stride * s.stride; first += BoxedConvolution::most_phases) {
          BoxedConvolution p = boxed_data_gradient(s, first);
          if (p.phase_count == 0) continue;
          const BoxPlan plan = plans<ConvPass::data>(p, processors)[choice];
          const int blocks = apply_plan<ConvPass::data>(p, plan, processors);
          walk<ConvPass::data>(p, blocks, [&](const BoxWork& work) { add_steps(p, plan, work, s, dy, weight, dx); });
        }
        double largest = 0;
        for (std::size_t i = 0; i < dx.size(); ++i) largest = std::max(largest, std::abs(dx[i] - expected[i]));
        CHECK(largest < 1e-12 * static_cast<double>(s.o * s.kernel_h * s.kernel_w));
      }
  }
}

TEST_CASE("launches of one phase and of many tiles cover their steps once") {
  for (const Conv2dShape& s : {shape(2, 16, 16, 1280, 1280, 3, 2, 1, 1), shape(20, 64, 64, 320, 320, 3, 2, 1, 1),
                               shape(2, 8, 8, 2560, 1280, 3, 1, 1, 1), shape(2, 64, 64, 960, 320, 3, 1, 1, 1)})
    for (std::size_t choice = 0; choice < 4; ++choice) {
      CAPTURE(s.c);
      CAPTURE(s.stride);
      CAPTURE(choice);
      const auto use = [](const BoxWork&) {};
      BoxedConvolution forward = boxed(s), weights = boxed(s), data = boxed_data_gradient(s, 0);
      const BoxPlan plan = plans<ConvPass::forward>(forward, 132)[choice];
      walk<ConvPass::forward>(forward, apply_plan<ConvPass::forward>(forward, plan, 132), use);
      const BoxPlan weights_plan = plans<ConvPass::weights>(weights, 132)[choice];
      walk<ConvPass::weights>(weights, apply_plan<ConvPass::weights>(weights, weights_plan, 132), use);
      const BoxPlan data_plan = plans<ConvPass::data>(data, 132)[choice];
      walk<ConvPass::data>(data, apply_plan<ConvPass::data>(data, data_plan, 132), use);
    }
}

TEST_CASE("a small data gradient of stride 2 keeps all multiprocessors busy") {
  const Conv2dShape s = shape(2, 16, 16, 1280, 1280, 3, 2, 1, 1);
  BoxedConvolution p = boxed_data_gradient(s, 0);
  CHECK(p.phase_count == 4);
  const BoxPlan plan = choose_plan<ConvPass::data>(p, 132);
  CHECK(apply_plan<ConvPass::data>(p, plan, 132) == 132);
  const index_t steps = p.steps_before<ConvPass::data>(p.tiles());
  for (int block = 0; block < 132; ++block) {
    BoxSchedule<ConvPass::data> schedule(p, block, 132);
    BoxWork work;
    index_t own = 0;
    while (schedule.next(p, work)) own += work.last - work.first;
    CHECK(own <= steps / 132 + 1);
  }
}
