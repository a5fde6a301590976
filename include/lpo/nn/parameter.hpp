// SPDX-License-Identifier: MIT
// Parameter: a named weight of a module; visitors walk a model's parameters under the names its checkpoint uses.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <type_traits>

#include <lpo/autograd/var.hpp>

namespace lpo::inline LPO_ABI {

/// How a weight lies in memory compared with its checkpoint: `convolution` weights are OIHW in files, OHWI in memory.
enum class WeightLayout { plain, convolution };

/// How a weight starts when nothing is loaded. `uniform` draws from +-scale, `normal` has deviation scale.
struct Initialization {
  enum class Kind { zeros, ones, uniform, normal, constant } kind = Kind::zeros;
  float scale = 0.0f;
};

/// A weight without its rank: what visitors, checkpoints and optimisers handle. A size of 0 means absent (LoRA that is off).
template <class T, class Device>
struct AnyParameter {
  static constexpr int max_parameter_rank = 4;

  int rank = 1;
  index_t extents[max_parameter_rank] = {0, 1, 1, 1};
  WeightLayout layout = WeightLayout::plain;
  Initialization initialization;
  Slot slot;

  AnyParameter() { slot.persistent = true; }
  AnyParameter(const AnyParameter&) = delete;
  AnyParameter& operator=(const AnyParameter&) = delete;

  index_t size() const { return extents[0] * extents[1] * extents[2] * extents[3]; }
  T* data() const { return reinterpret_cast<T*>(slot.data); }
  T* gradient() const { return reinterpret_cast<T*>(slot.gradient); }
  bool trainable() const { return slot.requires_gradient; }
};

/// A weight of static rank. Storage comes later, from a ParameterStore.
template <class T, int Rank, class Device>
struct Parameter : AnyParameter<T, Device> {
  static_assert(Rank <= AnyParameter<T, Device>::max_parameter_rank);

  Parameter(const Extents<Rank>& sizes, Initialization start, WeightLayout order = WeightLayout::plain) {
    resize(sizes, start);
    this->layout = order;
  }

  void resize(const Extents<Rank>& sizes, Initialization start) {
    this->rank = Rank;
    for (int axis = 0; axis < Rank; ++axis) this->extents[axis] = sizes[axis];
    this->initialization = start;
  }

  /// The weight on a tape.
  Var<T, Rank, Device> on(Tape<Device>& tape) {
    Extents<Rank> sizes{};
    for (int axis = 0; axis < Rank; ++axis) sizes[axis] = this->extents[axis];
    if (this->slot.data == nullptr)
      throw ValueError("[Parameter] a weight was used before a ParameterStore gave it memory; enable_lora(), add() and allocate() come "
                       "first, in this order");
    return {&tape, &this->slot, View<T, Rank, Device>(this->data(), sizes)};
  }
};

template <class T, class Device>
struct LoraAdapter;

/// Walks modules. A module's `visit(visitor)` names its members: `visitor("conv_in", conv_in)`; names join with dots, as in
/// the checkpoints of diffusers and transformers.
template <class T, class Device>
class ParameterVisitor {
 public:
  virtual ~ParameterVisitor() = default;

  /// Called for every weight that is present.
  virtual void parameter(const std::string& name, AnyParameter<T, Device>& parameter) = 0;
  /// Called for every projection that can carry a LoRA, with the projection's name, before its weights.
  virtual void adapter(const std::string&, LoraAdapter<T, Device>&) {}

  template <class Member>
  void operator()(const std::string& name, Member& member) {
    if constexpr (std::is_base_of_v<AnyParameter<T, Device>, Member>) {
      if (member.size() > 0) parameter(prefix_ + name, member);
    } else {
      const std::string outer = prefix_;
      prefix_ += name + ".";
      member.visit(*this);
      prefix_ = outer;
    }
  }

  template <class Member, std::size_t Count>
  void operator()(const std::string& name, std::array<Member, Count>& members) {
    std::size_t i = 0;
    for (Member& member : members) (*this)(name + "." + std::to_string(i++), member);
  }

  /// Visits an adapter under the name of the projection that is being visited.
  void enter_adapter(LoraAdapter<T, Device>& member) {
    adapter(prefix_.empty() ? prefix_ : prefix_.substr(0, prefix_.size() - 1), member);
  }

  /// Visits a whole model under a prefix ("unet", or "" for none).
  template <class Module>
  void model(const std::string& name, Module& network) {
    prefix_ = name.empty() ? "" : name + ".";
    network.visit(*this);
    prefix_.clear();
  }

 private:
  std::string prefix_;
};

/// Visitor from a lambda `void(const std::string&, AnyParameter<T, Device>&)`.
template <class T, class Device, class Module, class Function>
void for_each_parameter(Module& network, Function&& function, const std::string& prefix = "") {
  struct Visitor : ParameterVisitor<T, Device> {
    Function& function;
    explicit Visitor(Function& f) : function(f) {}
    void parameter(const std::string& name, AnyParameter<T, Device>& p) override { function(name, p); }
  } visitor(function);
  visitor.model(prefix, network);
}

}  // namespace lpo::inline LPO_ABI
