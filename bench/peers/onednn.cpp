// SPDX-License-Identifier: MIT
// oneDNN alone on one CPU: products and convolutions at the shapes of bench/peers/cpu_torch.py, float32, channels last,
// weights reordered once before the timing. Prints a line `name milliseconds` per case, the median of its turns.
//
//   g++ -std=c++20 -O2 bench/peers/onednn.cpp -o onednn -ldnnl     (Debian: libdnnl-dev)
//   OMP_NUM_THREADS=16 ./onednn [seconds per case]
#include <oneapi/dnnl/dnnl.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <unordered_map>
#include <vector>

using dnnl::memory;
using Tag = memory::format_tag;
using Arguments = std::unordered_map<int, memory>;

namespace {

dnnl::engine engine(dnnl::engine::kind::cpu, 0);
dnnl::stream stream(engine);
double seconds_per_case = 0.15;

memory::desc shape(const memory::dims& dims, Tag tag) { return {dims, memory::data_type::f32, tag}; }

/// Memory of that layout, filled with small numbers.
memory filled(const memory::desc& layout) {
  memory block(layout, engine);
  auto* const values = static_cast<float*>(block.get_data_handle());
  for (std::size_t i = 0; i < layout.get_size() / sizeof(float); ++i)
    values[i] = static_cast<float>(i % 101) / 101.0f - 0.5f;
  return block;
}

void time_case(const char* name, const dnnl::primitive& primitive, const Arguments& arguments) {
  using clock = std::chrono::steady_clock;
  std::vector<double> times;
  const auto begin = clock::now();
  while (times.size() < 4 || std::chrono::duration<double>(clock::now() - begin).count() < seconds_per_case) {
    const auto start = clock::now();
    primitive.execute(stream, arguments);
    stream.wait();
    times.push_back(std::chrono::duration<double, std::milli>(clock::now() - start).count());
  }
  std::sort(times.begin() + 1, times.end());  // the first one is a rehearsal
  std::printf("%s %.4f\n", name, times[1 + times.size() / 2 - (times.size() > 4 ? 0 : 1)]);
  std::fflush(stdout);
}

void product(int rows, int out, int in) {
  // Forms 0, 1, 2: x W^T, dy W, dy^T x with x [rows, in], W [out, in], dy [rows, out].
  for (int form = 0; form < 3; ++form) {
    const int m = form == 2 ? out : rows, n = form == 0 ? out : in, k = form == 0 ? in : form == 1 ? out : rows;
    const auto a = shape({m, k}, form == 2 ? Tag::ba : Tag::ab);
    const auto b = shape({k, n}, form == 2 ? Tag::ab : Tag::any);
    const auto c = shape({m, n}, Tag::ab);
    const dnnl::matmul::primitive_desc plan({a, b, c}, engine);
    char name[96];
    std::snprintf(name, sizeof(name), "gemm<float>/rows:%d/out:%d/in:%d/form:%d", rows, out, in, form);
    time_case(name, dnnl::matmul(plan),
              {{DNNL_ARG_SRC, filled(plan.src_desc())},
               {DNNL_ARG_WEIGHTS, filled(plan.weights_desc())},
               {DNNL_ARG_DST, filled(plan.dst_desc())}});
  }
}

void convolution(int side, int c, int o, int kernel, int stride) {
  const int pad = kernel / 2, out = (side + 2 * pad - kernel) / stride + 1;
  const auto x = shape({1, c, side, side}, Tag::nhwc), y = shape({1, o, out, out}, Tag::nhwc);
  const auto w = shape({o, c, kernel, kernel}, Tag::any), bias = shape({o}, Tag::x);
  const memory::dims strides{stride, stride}, padding{pad, pad};
  const auto algorithm = dnnl::algorithm::convolution_direct;
  const dnnl::convolution_forward::primitive_desc forward(
      {dnnl::prop_kind::forward_training, algorithm, x, w, bias, y, strides, padding, padding}, engine);
  const dnnl::convolution_backward_data::primitive_desc data({algorithm, x, w, y, strides, padding, padding}, engine,
                                                             forward);
  const dnnl::convolution_backward_weights::primitive_desc weights(
      {algorithm, x, w, bias, y, strides, padding, padding}, engine, forward);
  char name[128];
  const auto title = [&](int pass) {
    std::snprintf(name, sizeof(name), "conv2d<float>/n:1/side:%d/c:%d/o:%d/kernel:%d/stride:%d/pass:%d", side, c, o,
                  kernel, stride, pass);
    return name;
  };
  time_case(title(0), dnnl::convolution_forward(forward),
            {{DNNL_ARG_SRC, filled(forward.src_desc())},
             {DNNL_ARG_WEIGHTS, filled(forward.weights_desc())},
             {DNNL_ARG_BIAS, filled(forward.bias_desc())},
             {DNNL_ARG_DST, filled(forward.dst_desc())}});
  time_case(title(1), dnnl::convolution_backward_data(data),
            {{DNNL_ARG_DIFF_SRC, filled(data.diff_src_desc())},
             {DNNL_ARG_WEIGHTS, filled(data.weights_desc())},
             {DNNL_ARG_DIFF_DST, filled(data.diff_dst_desc())}});
  time_case(title(2), dnnl::convolution_backward_weights(weights),
            {{DNNL_ARG_SRC, filled(weights.src_desc())},
             {DNNL_ARG_DIFF_WEIGHTS, filled(weights.diff_weights_desc())},
             {DNNL_ARG_DIFF_BIAS, filled(weights.diff_bias_desc())},
             {DNNL_ARG_DIFF_DST, filled(weights.diff_dst_desc())}});
}

}  // namespace

int main(int count, char** values) {
  if (count > 1) seconds_per_case = std::atof(values[1]);
  const int products[][3] = {{4096, 320, 320},  {4096, 2560, 320}, {1024, 640, 640}, {1024, 5120, 640},
                             {256, 1280, 1280}, {64, 1280, 1280},  {77, 320, 768},   {77, 1280, 768}};
  for (const auto& p : products) product(p[0], p[1], p[2]);
  const int convolutions[][5] = {{64, 320, 320, 3, 1},  {32, 640, 640, 3, 1},   {16, 1280, 1280, 3, 1},
                                 {8, 1280, 1280, 3, 1}, {16, 2560, 1280, 3, 1}, {64, 320, 320, 3, 2},
                                 {64, 960, 320, 1, 1}};
  for (const auto& p : convolutions) convolution(p[0], p[1], p[2], p[3], p[4]);
}
