// SPDX-License-Identifier: MIT
// The names that torch's checkpoints use for element types, storages and the functions that make tensors.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <string_view>

#include <lpo/base/config.hpp>
#include <lpo/io/dtype.hpp>

namespace lpo::inline LPO_ABI::detail {

inline constexpr std::string_view torch_tensor = "torch._utils._rebuild_tensor_v2";
inline constexpr std::string_view torch_typed_tensor = "torch._utils._rebuild_tensor_v3";
inline constexpr std::string_view torch_parameter = "torch._utils._rebuild_parameter";
inline constexpr std::string_view torch_parameter_with_state = "torch._utils._rebuild_parameter_with_state";
inline constexpr std::string_view torch_untyped_storage = "torch.storage.UntypedStorage";

/// An element type of torch: its dtype, the storage class of older releases if it has one, and lpo's type if it has
/// one.
struct TorchType {
  std::string_view dtype, storage;
  std::optional<DType> lpo;
};

inline constexpr TorchType torch_types[] = {
    {"torch.float32", "torch.FloatStorage", DType::F32},
    {"torch.float16", "torch.HalfStorage", DType::F16},
    {"torch.bfloat16", "torch.BFloat16Storage", DType::BF16},
    {"torch.float64", "torch.DoubleStorage", DType::F64},
    {"torch.int64", "torch.LongStorage", DType::I64},
    {"torch.int32", "torch.IntStorage", DType::I32},
    {"torch.int16", "torch.ShortStorage", DType::I16},
    {"torch.int8", "torch.CharStorage", DType::I8},
    {"torch.uint8", "torch.ByteStorage", DType::U8},
    {"torch.bool", "torch.BoolStorage", DType::BOOL},
    {"torch.uint16", "", DType::U16},
    {"torch.uint32", "", DType::U32},
    {"torch.uint64", "", DType::U64},
    {"torch.float8_e4m3fn", "", DType::F8_E4M3},
    {"torch.float8_e5m2", "", DType::F8_E5M2},
    {"torch.float8_e4m3fnuz", "", std::nullopt},
    {"torch.float8_e5m2fnuz", "", std::nullopt},
    {"torch.float8_e8m0fnu", "", std::nullopt},
    {"torch.complex32", "torch.ComplexHalfStorage", std::nullopt},
    {"torch.complex64", "torch.ComplexFloatStorage", std::nullopt},
    {"torch.complex128", "torch.ComplexDoubleStorage", std::nullopt},
};

/// lpo's type for "torch.float32" or "torch.FloatStorage", or nothing.
constexpr std::optional<DType> dtype_of_torch(std::string_view name) {
  for (const TorchType& type : torch_types)
    if (!name.empty() && (type.dtype == name || type.storage == name)) return type.lpo;
  return std::nullopt;
}

/// The storage class for `dtype`, or "" if torch has none.
constexpr std::string_view torch_storage_of(DType dtype) {
  for (const TorchType& type : torch_types)
    if (type.lpo == dtype) return type.storage;
  return {};
}

/// Everything that a checkpoint of tensors may name.
inline std::span<const std::string_view> torch_globals() {
  static constexpr auto names = [] {
    constexpr std::string_view others[] = {
        "collections.OrderedDict",  torch_tensor,          torch_typed_tensor, torch_parameter,
        torch_parameter_with_state, torch_untyped_storage, "torch.Size",       "torch.device"};
    std::array<std::string_view, std::size(others) + 2 * std::size(torch_types)> all{};
    std::size_t count = 0;
    for (const std::string_view name : others) all[count++] = name;
    for (const TorchType& type : torch_types) {
      all[count++] = type.dtype;
      // A repeated name does no harm; an empty one would be the GLOBAL "." of a damaged file.
      all[count++] = type.storage.empty() ? type.dtype : type.storage;
    }
    return all;
  }();
  return names;
}

}  // namespace lpo::inline LPO_ABI::detail
