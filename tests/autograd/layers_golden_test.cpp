// SPDX-License-Identifier: MIT
// Every layer against PyTorch: values and gradients of tests/golden/layers.safetensors, in float on Cpu and Reference.
#include <functional>
#include <lpo/autograd/attention.hpp>
#include <lpo/autograd/conv2d.hpp>
#include <lpo/autograd/linear.hpp>
#include <lpo/autograd/normalization.hpp>
#include <lpo/autograd/resample.hpp>
#include <lpo/backend/cpu/attention.hpp>
#include <lpo/backend/cpu/conv2d.hpp>
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/cpu/gemm.hpp>
#include <lpo/backend/cpu/normalization.hpp>
#include <lpo/backend/cpu/reduce.hpp>
#include <lpo/backend/cpu/resample.hpp>
#include <lpo/backend/reference/attention.hpp>
#include <lpo/backend/reference/conv2d.hpp>
#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/gemm.hpp>
#include <lpo/backend/reference/normalization.hpp>
#include <lpo/backend/reference/reduce.hpp>
#include <lpo/backend/reference/resample.hpp>
#include <lpo/io/safetensors.hpp>
#include <memory>

#include "support.hpp"

namespace {

constexpr double tolerance = 1e-5;

/// How the file orders axes, and how lpo does.
enum class Layout {
  plain,  ///< any rank, in order
  image,  ///< NCHW -> NHWC; convolution weights OIHW -> OHWI alike
  heads,  ///< [batch, heads, tokens, dim] -> [batch, tokens, heads * dim]
};

template <class Device>
class Layer {
 public:
  Layer(const lpo::SafetensorsFile& file, std::string name)
      : file_(file), name_(std::move(name)), context_(2), tape_(context_) {}

  Tape<Device>& tape() { return tape_; }

  /// Argument `key` as a variable of the given rank; leading axes merge when the file has more.
  template <int Rank>
  Var<float, Rank, Device> input(const std::string& key, Layout layout = Layout::plain) {
    auto owner = std::make_shared<Tensor<float, Rank, Device>>(load<Rank>(key, layout));
    const auto var = variable(tape_, *owner);
    checks_.push_back([this, owner, var, key, layout] {
      const auto gradient = read_gradient(var);
      compare("grad/" + key, gradient.view(), layout);
    });
    return var;
  }

  /// Compares the value, runs backward from the file's cotangent and compares every input's gradient.
  template <int Rank>
  void finish(const Var<float, Rank, Device>& out, Layout layout = Layout::plain) {
    compare("y", out.view(), layout);
    const auto cotangent = load<Rank>("cotangent", layout);
    backward(out, cotangent.view());
    for (const auto& check : checks_) check();
  }

  index_t extent(const std::string& key, std::size_t axis) const { return file_.info(name_ + "/" + key).shape[axis]; }

 private:
  static constexpr int order(Layout layout, int axis) {
    constexpr int orders[3][4] = {{0, 1, 2, 3}, {0, 2, 3, 1}, {0, 2, 1, 3}};
    return orders[static_cast<int>(layout)][axis];
  }

  template <int Rank>
  Tensor<float, Rank, Device> load(const std::string& key, Layout layout) {
    auto values = file_.read_vector<float>(name_ + "/" + key);
    const auto& shape = file_.info(name_ + "/" + key).shape;
    std::vector<index_t> sizes(shape.begin(), shape.end());
    if (layout != Layout::plain) {
      const Extents<4> from{shape[0], shape[1], shape[2], shape[3]};
      const int turn[4] = {order(layout, 0), order(layout, 1), order(layout, 2), order(layout, 3)};
      const auto source = Tensor<float, 4, Device>::from(from, values);
      const auto turned = source.view().permute(turn);
      const auto dense = Tensor<float, 4, Device>::copy_of(turned);
      values.assign(dense.span().begin(), dense.span().end());
      sizes.assign(turned.extents.begin(), turned.extents.end());
      if (layout == Layout::heads) sizes = {sizes[0], sizes[1], sizes[2] * sizes[3]};
    }
    Extents<Rank> extents{};
    const int merged = static_cast<int>(sizes.size()) - Rank;  // leading axes that become one
    extents[0] = 1;
    for (int axis = 0; axis <= merged; ++axis) extents[0] *= sizes[static_cast<std::size_t>(axis)];
    for (int axis = 1; axis < Rank; ++axis) extents[axis] = sizes[static_cast<std::size_t>(axis + merged)];
    return Tensor<float, Rank, Device>::from(extents, values);
  }

  template <class T, int Rank>
  void compare(const std::string& key, const View<T, Rank, Device>& found, Layout layout) {
    const auto expected = load<Rank>(key, layout);
    REQUIRE(to_string(found.extents) == to_string(expected.extents()));
    const std::span<const float> values(found.data, static_cast<std::size_t>(found.size()));
    const double error = lpo::testing::norm_error(values, expected.span());
    INFO(name_ << "/" << key << ": " << lpo::testing::difference(found, expected.view()).message);
    CHECK(error <= tolerance);
  }

  const lpo::SafetensorsFile& file_;
  std::string name_;
  Context<Device> context_;
  Tape<Device> tape_;
  std::vector<std::function<void()>> checks_;
};

template <class Device>
void check_all_layers() {
  const lpo::SafetensorsFile file(std::string(LPO_TEST_GOLDEN_DIR) + "/layers.safetensors");
  using lpo::Conv2dOptions;
  const std::pair<const char*, Conv2dOptions> convolutions[] = {
      {"conv2d_3x3", Conv2dOptions::same(3)},
      {"conv2d_1x1", {}},
      {"conv2d_5x5", Conv2dOptions::same(5)},
      {"conv2d_3x3_stride2", Conv2dOptions::same(3, 2)},
      {"conv2d_3x3_stride2_asymmetric", {2, 0, 1, 0, 1}},
  };
  for (const auto& [name, options] : convolutions) {
    Layer<Device> layer(file, name);
    const auto x = layer.template input<4>("x", Layout::image), w = layer.template input<4>("w", Layout::image);
    layer.finish(conv2d(x, w, layer.template input<1>("b"), options), Layout::image);
  }
  {
    Layer<Device> layer(file, "linear");
    const auto x = layer.template input<2>("x"), w = layer.template input<2>("w");
    layer.finish(linear(x, w, layer.template input<1>("b")));
  }
  for (const auto& [name, groups, epsilon] :
       {std::tuple{"group_norm", 3, 1e-5f}, std::tuple{"group_norm_eps6", 2, 1e-6f}}) {
    Layer<Device> layer(file, name);
    const auto x = layer.template input<4>("x", Layout::image);
    const auto w = layer.template input<1>("w"), b = layer.template input<1>("b");
    layer.finish(group_norm(x, w, b, groups, epsilon, false), Layout::image);
  }
  {
    Layer<Device> layer(file, "layer_norm");
    const auto x = layer.template input<2>("x");
    const auto w = layer.template input<1>("w"), b = layer.template input<1>("b");
    layer.finish(layer_norm(x, w, b, 1e-5f));
  }
  {
    Layer<Device> layer(file, "softmax");
    layer.finish(softmax(layer.template input<2>("x")));
  }
  for (const char* name : {"attention_self", "attention_cross", "attention_causal"}) {
    Layer<Device> layer(file, name);
    const auto q = layer.template input<3>("q", Layout::heads), k = layer.template input<3>("k", Layout::heads);
    const auto v = layer.template input<3>("v", Layout::heads);
    layer.finish(attention(q, k, v, layer.extent("q", 1), std::string(name) == "attention_causal"), Layout::heads);
  }
  const auto pointwise = [&](const char* name, auto&& function) {
    Layer<Device> layer(file, name);
    layer.finish(Var<float, 2, Device>(function(layer.template input<2>("x"))));
  };
  pointwise("silu", [](const auto& x) { return silu(x); });
  pointwise("gelu", [](const auto& x) { return gelu(x); });
  pointwise("gelu_quick", [](const auto& x) { return quick_gelu(x); });
  pointwise("geglu", [](const auto& x) { return x.slice(1, 0, 7) * gelu(x.slice(1, 7, 14)); });
  {
    Layer<Device> layer(file, "upsample_nearest");
    const auto x = layer.template input<4>("x", Layout::image);
    layer.finish(upsample_nearest(x, 2 * x.extent(1), 2 * x.extent(2)), Layout::image);
  }
}

}  // namespace

TEST_CASE("layers on Cpu equal PyTorch's") { check_all_layers<Cpu>(); }

TEST_CASE("layers on Reference equal PyTorch's") { check_all_layers<Reference>(); }
