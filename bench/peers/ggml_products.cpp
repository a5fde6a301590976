// SPDX-License-Identifier: MIT
// ggml alone on one CPU: its mul_mat at the products of bench/peers/cpu_torch.py, float32. Prints a line
// `name milliseconds` per case, the median of its turns.
//
//   cmake -S ggml -B ggml/build -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_BUILD_TESTS=OFF
//         -DGGML_BUILD_EXAMPLES=OFF && cmake --build ggml/build
//   g++ -std=c++20 -O2 -Iggml/include bench/peers/ggml_products.cpp -o ggml_products -Lggml/build/src -lggml -lggml-cpu
//       -lggml-base -fopenmp
//   ./ggml_products THREADS [seconds per case]
#include <ggml-cpu.h>
#include <ggml.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

int main(int count, char** values) {
  using clock = std::chrono::steady_clock;
  const int threads = count > 1 ? std::atoi(values[1]) : 1;
  const double seconds = count > 2 ? std::atof(values[2]) : 0.15;
  const int products[][3] = {{4096, 320, 320},  {4096, 2560, 320}, {1024, 640, 640}, {1024, 5120, 640},
                             {256, 1280, 1280}, {64, 1280, 1280},  {77, 320, 768},   {77, 1280, 768}};
  for (const auto& [rows, out, in] : products) {
    std::vector<char> space(std::size_t{256} << 20);
    ggml_context* const context = ggml_init({space.size(), space.data(), false});
    // Both operands have `in` as their innermost axis; the result is [rows, out].
    ggml_tensor* const weight = ggml_new_tensor_2d(context, GGML_TYPE_F32, in, out);
    ggml_tensor* const x = ggml_new_tensor_2d(context, GGML_TYPE_F32, in, rows);
    for (ggml_tensor* tensor : {weight, x}) {
      float* const numbers = static_cast<float*>(tensor->data);
      for (std::int64_t i = 0; i < ggml_nelements(tensor); ++i)
        numbers[i] = static_cast<float>(i % 101) / 101.0f - 0.5f;
    }
    ggml_cgraph* const graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, ggml_mul_mat(context, weight, x));
    ggml_cplan plan = ggml_graph_plan(graph, threads, nullptr);
    std::vector<std::uint8_t> work(plan.work_size);
    plan.work_data = work.data();
    std::vector<double> times;
    const auto begin = clock::now();
    while (times.size() < 4 || std::chrono::duration<double>(clock::now() - begin).count() < seconds) {
      const auto start = clock::now();
      ggml_graph_compute(graph, &plan);
      times.push_back(std::chrono::duration<double, std::milli>(clock::now() - start).count());
    }
    std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
    std::printf("gemm<float>/rows:%d/out:%d/in:%d/form:0 %.4f\n", rows, out, in, times[times.size() / 2]);
    std::fflush(stdout);
    ggml_free(context);
  }
}
