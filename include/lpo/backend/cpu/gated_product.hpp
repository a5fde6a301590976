// SPDX-License-Identifier: MIT
// The CPU's product with a gate: panels of values and gates alternate, and a job that has both makes the gated result.
//
// Without it, a product writes [rows, 2 hidden] and a statement reads them again: memory's time, which counts the more
// the faster the product is.
#pragma once

#include <lpo/backend/cpu/bfloat16_product.hpp>
#include <lpo/backend/cpu/product_run.hpp>
#include <lpo/kernel/gated_product.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace kernel {

/// For storage of 16 and 32 bits, where `hidden` fills whole panels.
template <>
struct GatedProduct<Cpu> {
  template <class T>
  static bool can_run(Context<Cpu>&, const GatedProductParams<T>& p) {
    if constexpr (std::is_same_v<T, double>)
      return false;
    else
      return p.hidden > 0 && p.in > 0 && p.hidden % panel_columns<T>() == 0;
  }

  template <class T>
  static void run(Context<Cpu>& context, const GatedProductParams<T>& p) {
    if constexpr (!std::is_same_v<T, double>) {
      detail::TileOutput<T> out;
      out.c = p.both;
      out.rows = detail::even_rows(p.rows, 2 * p.hidden);
      out.bias = p.bias;
      out.gated = p.out;
      if constexpr (std::is_same_v<T, bfloat16>) {
        if (detail::multiplies_pairs<T>()) return run_pairs(context, p, out);
      }
      run_tiles(context, p, out);
    }
  }

 private:
  template <class T>
  static index_t panel_columns() {
    return detail::multiplies_pairs<T>() ? detail::pair_lanes : detail::tile_kernel<float>().columns();
  }

  static void run_pairs(Context<Cpu>& context, const GatedProductParams<bfloat16>& g,
                        const detail::TileOutput<bfloat16>& out) {
    constexpr index_t lanes = detail::pair_lanes;
    detail::PairProduct p;
    p.m = g.rows, p.n = 2 * g.hidden, p.k = g.in;
    p.a = {g.x, 0, detail::even_rows(g.rows, g.x_row), g.in};
    p.b = {g.weight, 0, {lanes, 2, g.in, g.hidden * g.in, lanes * g.in}, g.in};
    detail::run_pair_product(context, p, out);
  }

  template <class T>
  static void run_tiles(Context<Cpu>& context, const GatedProductParams<T>& g, const detail::TileOutput<T>& out) {
    Scratch<Cpu> scratch(context);
    detail::TileProduct<float> p;
    p.m = g.rows, p.n = 2 * g.hidden, p.k = g.in;
    p.a.run = g.in;
    if constexpr (std::is_same_v<T, float>) {
      p.a.data = g.x;
      p.a.rows = detail::even_rows(g.rows, g.x_row);
    } else {
      float* wide = scratch.allocate<float>(g.rows * g.in);
      detail::convert_block(context, g.rows, g.in, g.x, g.x_row, wide);
      p.a.data = wide;
      p.a.rows = detail::even_rows(g.rows, g.in);
    }
    const index_t columns = p.kernel->columns();
    p.b = detail::RightOperand<float>::along_k(g.weight, 0, {columns, 2, g.in, g.hidden * g.in, columns * g.in});
    detail::run_product(context, p, out);
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
#endif
