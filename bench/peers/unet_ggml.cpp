// SPDX-License-Identifier: MIT
// ggml's Stable Diffusion 1.5 UNet on the CPU: the class of stable-diffusion.cpp that builds its graph, full size,
// random weights, latents of 64 x 64 and 77 tokens. Prints the median and the best of its wall times, the least
// processor time of all threads (which counts waiting, as OpenMP's threads spin) and the largest memory of the process;
// the twin of bench/peers/unet_cpu_torch.py.
//
// Of stable-diffusion.cpp only the files below are needed (and its ggml, as a submodule or beside it):
//
//   cmake -S sdcpp/ggml -B ggml -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON -DGGML_LLAMAFILE=ON
//         -DGGML_BUILD_TESTS=OFF -DGGML_BUILD_EXAMPLES=OFF -DCMAKE_C_FLAGS=-DGGML_MAX_NAME=160
//         -DCMAKE_CXX_FLAGS=-DGGML_MAX_NAME=160
//   cmake --build ggml
//   g++ -std=c++17 -O2 -DGGML_MAX_NAME=160 -Isdcpp -Isdcpp/src -Isdcpp/include -Isdcpp/ggml/include -Isdcpp/thirdparty
//       bench/peers/unet_ggml.cpp sdcpp/src/core/{ggml_extend_backend,ggml_graph_cut,layer_split_partition,util}.cpp
//       -o unet_ggml -Lggml/src -lggml -lggml-cpu -lggml-base -fopenmp
//   ./unet_ggml [--threads 2] [--rows 2] [--type f32] [--flash] [--direct] [--blas] [--repeats 3] [--count] [--write
//   FILE]
//
// GGML_LLAMAFILE is on by default in llama.cpp and off in ggml and stable-diffusion.cpp; with it products are faster.
// For --blas, whose products are that library's in place of ggml's: -DGGML_BLAS=ON -DGGML_BLAS_VENDOR=OpenBLAS, and
// -Lggml/src/ggml-blas -lggml-blas -lopenblas.
//
// Types of weights: f32 and f16 for all matrices and convolutions; sd for what stable-diffusion.cpp makes of a float
// checkpoint, float matrices and half convolutions; bf16 for bfloat16 matrices and half convolutions. Activations are
// float between operations. Without
// --direct ggml unfolds images in half precision, whatever the type, so that f32 is float32 throughout with --direct
// only. --flash and
// --direct are stable-diffusion.cpp's --diffusion-fa and --diffusion-conv-direct. --count lists the graph's operations
// instead. --write makes a safetensors file of the weights, the inputs and the output; bench/peers/unet_ggml_check.py
// computes that output with diffusers.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "model/diffusion/unet.hpp"

namespace {

/// All weights stay where they were allocated, so there is nothing to load or to release.
struct ResidentWeights : RunnerWeightManager {
  bool assign_compute_backend(const std::vector<ggml_tensor*>&, ggml_backend_t) override { return true; }
  bool prepare_params(const std::vector<ggml_tensor*>&) override { return true; }
  void release_compute_backend_params(const std::vector<ggml_tensor*>&) override {}
  void release_params_backend_params(const std::vector<ggml_tensor*>&) override {}
};

class Random {
 public:
  float uniform(float scale) {
    seed_ = seed_ * 1664525u + 1013904223u;
    return static_cast<float>(static_cast<std::int32_t>(seed_)) * (scale / 2147483648.0f);
  }

 private:
  std::uint32_t seed_ = 7;
};

struct Inputs {
  sd::Tensor<float> latents, timesteps, text;

  explicit Inputs(std::int64_t rows) : latents({64, 64, 4, rows}), timesteps({rows}), text({768, 77, rows}) {
    Random random;
    for (float& value : latents.values()) value = random.uniform(1.7f);
    for (float& value : text.values()) value = random.uniform(1.7f);
    for (float& value : timesteps.values()) value = 501.0f;
  }
};

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

class Denoiser : public UNetModelRunner {
 public:
  Denoiser(ggml_backend_t backend, std::shared_ptr<RunnerWeightManager> manager, ggml_type matrices,
           ggml_type convolutions)
      : UNetModelRunner(backend, {}, "", VERSION_SD1, manager) {
    get_param_tensors(weights, "");
    for (auto& [name, tensor] : weights) {
      // The class makes matrices float and convolutions half unless a checkpoint says otherwise; biases and norms stay
      // float.
      if (ggml_n_dims(tensor) == 1 || !ends_with(name, "weight")) continue;
      const bool convolution = tensor->ne[3] > 1;
      tensor->type = convolution ? convolutions : matrices;
      tensor->nb[0] = ggml_type_size(tensor->type);
      for (int axis = 1; axis < GGML_MAX_DIMS; ++axis)
        tensor->nb[axis] = tensor->nb[axis - 1] * static_cast<std::size_t>(tensor->ne[axis - 1]);
    }
    buffer_ = ggml_backend_alloc_ctx_tensors(params_ctx, backend);
    GGML_ASSERT(buffer_ != nullptr);
    ggml_backend_buffer_set_usage(buffer_, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    Random random;
    std::vector<float> values;
    std::vector<char> bytes;
    for (auto& [name, tensor] : weights) {
      const std::size_t count = static_cast<std::size_t>(ggml_nelements(tensor));
      const bool matrix = ggml_n_dims(tensor) > 1 && ends_with(name, "weight");
      const bool one = !matrix && ends_with(name, "weight");  // the scale of a norm
      const float scale =
          matrix
              ? std::sqrt(3.0f * static_cast<float>(tensor->ne[tensor->ne[3] > 1 ? 3 : 1]) / static_cast<float>(count))
              : 0.02f;
      values.resize(count);
      for (float& value : values) value = random.uniform(scale) + (one ? 1.0f : 0.0f);
      bytes.resize(ggml_nbytes(tensor));
      if (tensor->type == GGML_TYPE_F32)
        std::memcpy(bytes.data(), values.data(), bytes.size());
      else if (tensor->type == GGML_TYPE_F16)
        ggml_fp32_to_fp16_row(values.data(), reinterpret_cast<ggml_fp16_t*>(bytes.data()),
                              static_cast<std::int64_t>(count));
      else
        ggml_fp32_to_bf16_row(values.data(), reinterpret_cast<ggml_bf16_t*>(bytes.data()),
                              static_cast<std::int64_t>(count));
      ggml_backend_tensor_set(tensor, bytes.data(), 0, bytes.size());
      parameters += count;
    }
  }

  ~Denoiser() override { ggml_backend_buffer_free(buffer_); }

  sd::Tensor<float> predict(const Inputs& in, int threads) {
    return compute(threads, in.latents, in.timesteps, in.text);
  }

  /// Prints the graph's nodes by operation and the multiplications and additions of its products.
  void count(const Inputs& in) {
    ggml_cgraph* graph = nullptr;
    GGML_ASSERT(prepare_compute_graph([&] { return build_graph(in.latents, in.timesteps, in.text); }, &graph));
    std::map<std::string, int> nodes;
    double operations = 0.0;
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
      const ggml_tensor* const node = ggml_graph_node(graph, i);
      ++nodes[ggml_op_desc(node)];
      const double out = 2.0 * static_cast<double>(ggml_nelements(node));
      const ggml_tensor* const first = node->src[0];
      if (node->op == GGML_OP_MUL_MAT) operations += out * static_cast<double>(first->ne[0]);
      if (node->op == GGML_OP_CONV_2D)
        operations += out * static_cast<double>(first->ne[0] * first->ne[1] * first->ne[2]);
      if (node->op == GGML_OP_FLASH_ATTN_EXT) operations += 2.0 * out * static_cast<double>(node->src[1]->ne[1]);
    }
    std::printf("%.2f million parameters, %.1f GFLOP of products\n", static_cast<double>(parameters) * 1e-6,
                operations * 1e-9);
    for (const auto& [name, number] : nodes) std::printf("  %-20s %d\n", name.c_str(), number);
  }

  std::map<std::string, ggml_tensor*> weights;
  std::size_t parameters = 0;

 private:
  ggml_backend_buffer_t buffer_ = nullptr;
};

/// A safetensors file: all weights with their names in the checkpoint, the inputs and the output.
void write(const std::string& path, const Denoiser& denoiser, const Inputs& in, const sd::Tensor<float>& out) {
  struct Entry {
    std::string name, type, shape;
    const void* data;
    std::size_t bytes;
  };
  std::vector<Entry> entries;
  const auto add = [&](const std::string& name, const char* type, std::vector<std::int64_t> shape, const void* data,
                       std::size_t bytes) {
    std::string text;
    // ggml lists the innermost axis first.
    for (std::size_t i = shape.size(); i-- > 0;) text += std::to_string(shape[i]) + (i > 0 ? "," : "");
    entries.push_back({name, type, text, data, bytes});
  };
  for (const auto& [name, tensor] : denoiser.weights) {
    const int axes = tensor->ne[3] > 1 ? 4 : ggml_n_dims(tensor);
    const char* const type = tensor->type == GGML_TYPE_F32 ? "F32" : tensor->type == GGML_TYPE_F16 ? "F16" : "BF16";
    add(name, type, {tensor->ne, tensor->ne + axes}, tensor->data, ggml_nbytes(tensor));
  }
  const std::pair<const char*, const sd::Tensor<float>*> tensors[] = {
      {"latents", &in.latents}, {"timesteps", &in.timesteps}, {"text", &in.text}, {"output", &out}};
  for (const auto& [name, tensor] : tensors)
    add(name, "F32", tensor->shape(), tensor->data(), static_cast<std::size_t>(tensor->numel()) * sizeof(float));
  std::string header = "{";
  std::size_t begin = 0;
  for (const Entry& entry : entries) {
    header += (begin > 0 ? ",\"" : "\"") + entry.name + "\":{\"dtype\":\"" + entry.type + "\",\"shape\":[" +
              entry.shape + "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(begin + entry.bytes) +
              "]}";
    begin += entry.bytes;
  }
  header += "}";
  std::ofstream file(path, std::ios::binary);
  const std::uint64_t length = header.size();
  file.write(reinterpret_cast<const char*>(&length), sizeof length)
      .write(header.data(), static_cast<std::streamsize>(length));
  for (const Entry& entry : entries)
    file.write(static_cast<const char*>(entry.data), static_cast<std::streamsize>(entry.bytes));
  if (!file) std::fprintf(stderr, "%s was not written\n", path.c_str());
}

double processor_seconds(const rusage& usage) {
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

}  // namespace

int main(int count, char** values) {
  int threads = 2, rows = 2, repeats = 3;
  bool flash = false, direct = false, blas = false, count_only = false;
  std::string type = "f32", path;
  for (int i = 1; i < count; ++i) {
    const std::string option = values[i];
    const auto next = [&] { return i + 1 < count ? values[++i] : ""; };
    if (option == "--threads")
      threads = std::atoi(next());
    else if (option == "--rows")
      rows = std::atoi(next());
    else if (option == "--repeats")
      repeats = std::atoi(next());
    else if (option == "--type")
      type = next();
    else if (option == "--flash")
      flash = true;
    else if (option == "--direct")
      direct = true;
    else if (option == "--blas")
      blas = true;
    else if (option == "--count")
      count_only = true;
    else if (option == "--write")
      path = next();
    else
      return std::fprintf(stderr, "unknown option %s\n", option.c_str()), 2;
  }
  const std::map<std::string, std::pair<ggml_type, ggml_type>> types = {{"f32", {GGML_TYPE_F32, GGML_TYPE_F32}},
                                                                        {"sd", {GGML_TYPE_F32, GGML_TYPE_F16}},
                                                                        {"f16", {GGML_TYPE_F16, GGML_TYPE_F16}},
                                                                        {"bf16", {GGML_TYPE_BF16, GGML_TYPE_F16}}};
  const auto found = types.find(type);
  if (found == types.end() || threads < 1 || rows < 1 || repeats < 1)
    return std::fprintf(stderr, "no such type or number\n"), 2;

  // A BLAS multiplies and leaves all other operations to the scheduler, which adds the processor's backend.
  ggml_backend_t const backend = blas ? ggml_backend_init_by_name("BLAS", nullptr) : sd_backend_cpu_init();
  if (backend == nullptr) return std::fprintf(stderr, "ggml was built without a BLAS\n"), 2;
  if (blas) {
    const auto set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(ggml_backend_get_device(backend)), "ggml_backend_set_n_threads"));
    if (set_threads != nullptr) set_threads(backend, threads);
  }
  const auto manager = std::make_shared<ResidentWeights>();
  {
    Denoiser denoiser(backend, manager, found->second.first, found->second.second);
    denoiser.set_flash_attention_enabled(flash);
    denoiser.set_conv2d_direct_enabled(direct);
    const Inputs inputs(rows);
    if (count_only) return denoiser.count(inputs), 0;

    sd::Tensor<float> out = denoiser.predict(inputs, threads);  // maps the pages that it needs
    double sum = 0.0, squares = 0.0;
    for (const float value : out.values()) sum += value, squares += static_cast<double>(value) * value;
    const double number = static_cast<double>(out.numel());
    std::printf("# output: %.0f numbers, mean %.5f, root of mean square %.5f\n", number, sum / number,
                std::sqrt(squares / number));
    if (number != 64.0 * 64 * 4 * rows || !std::isfinite(squares))
      return std::fprintf(stderr, "the output is not a prediction\n"), 1;
    if (!path.empty()) return write(path, denoiser, inputs, out), 0;

    std::vector<double> wall, processor;
    for (int i = 0; i < repeats; ++i) {
      rusage before{}, after{};
      getrusage(RUSAGE_SELF, &before);
      const auto start = std::chrono::steady_clock::now();
      denoiser.predict(inputs, threads);
      wall.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
      getrusage(RUSAGE_SELF, &after);
      processor.push_back((processor_seconds(after) - processor_seconds(before)) * 1e3);
    }
    std::sort(wall.begin(), wall.end());
    std::sort(processor.begin(), processor.end());
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    std::printf("unet_forward<%s%s%s%s>/rows:%d/threads:%-3d %10.1f ms   best %.1f   processor %.1f   peak %.2f GiB\n",
                type.c_str(), flash ? ",flash" : "", direct ? ",direct" : "", blas ? ",blas" : "", rows, threads,
                wall[wall.size() / 2], wall.front(), processor.front(),
                static_cast<double>(usage.ru_maxrss) / 1048576.0);
  }
  ggml_backend_free(backend);
}
