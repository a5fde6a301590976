// SPDX-License-Identifier: MIT
// Tape: the linear record of a forward pass; backward walks it once in reverse and rewinds memory as it goes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>

#include <lpo/autograd/kept_projections.hpp>
#include <lpo/tensor/tensor.hpp>

namespace lpo::inline LPO_ABI {

/// Memory behind one or more Vars, and the gradient with respect to it.
struct Slot {
  std::byte* data = nullptr;
  std::byte* gradient = nullptr;
  std::size_t bytes = 0;
  bool requires_gradient = false;
  bool written = false;     ///< the gradient holds something: later writers add
  bool persistent = false;  ///< a parameter: its gradient belongs to a flat buffer, not to the pool
  // Results of several projections side by side (see projections()): each part has a first writer of its own.
  unsigned parts = 1;
  std::size_t part_bytes = 0;       ///< of one row of a part
  std::uint32_t written_parts = 0;  ///< a bit for each
};

/// Records operations while they run. Operations with no input that requires a gradient leave no node, so nothing below the
/// first trainable value costs backward time.
///
/// One step: run the forward, call `backward(loss)`, read parameter gradients, call `clear()`. Activations live in the
/// context's arena until backward or `clear()` rewinds it: read what you need before. Constants that are plain tensors or
/// views must outlive backward. Tapes of one context nest: `clear()` also frees what others hold that was
/// allocated after this tape was made.
template <class Device>
class Tape {
 public:
  struct Node {
    void (*call)(Node*, Tape&) = nullptr;
    Node* previous = nullptr;
    Slot* out = nullptr;
    Arena::Mark mark;
  };
  struct Tracked {
    Slot* slot;
    Tracked* previous;
  };
  struct Snapshot {
    Arena::Mark activations, meta;
    Node* last;
    Tracked* tracked;
  };

  explicit Tape(Context<Device>& context) : context_(context), start_(context.activations().mark()) {}
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;
  ~Tape() { clear(); }

  Context<Device>& context() { return context_; }

  /// False inside inference scopes: no nodes, no gradients.
  bool recording() const { return recording_; }
  /// Whether LoRA adapters contribute. Off, the same weights are the reference model.
  bool adapters() const { return adapters_; }
  /// Whether networks keep only their layers' inputs and outputs and compute the rest again in backward (gradient
  /// checkpointing): less memory for about a third more time.
  bool checkpointing() const { return checkpointing_; }
  void set_checkpointing(bool on) { checkpointing_ = on; }

  /// Restores both modes when it goes out of scope.
  class ModeGuard {
   public:
    ModeGuard(Tape& tape, bool recording, bool adapters)
        : tape_(tape), recording_(tape.recording_), adapters_(tape.adapters_) {
      tape.recording_ = recording;
      tape.adapters_ = adapters;
    }
    ModeGuard(const ModeGuard&) = delete;
    ModeGuard& operator=(const ModeGuard&) = delete;
    ~ModeGuard() {
      tape_.recording_ = recording_;
      tape_.adapters_ = adapters_;
    }

   private:
    Tape& tape_;
    bool recording_, adapters_;
  };
  [[nodiscard]] ModeGuard inference() { return ModeGuard(*this, false, adapters_); }
  [[nodiscard]] ModeGuard without_adapters() { return ModeGuard(*this, recording_, false); }

  /// Restores what was kept before when it goes out of scope.
  class KeepGuard {
   public:
    KeepGuard(Tape& tape, KeptProjections<Device>* kept) : tape_(tape), before_(std::exchange(tape.kept_, kept)) {}
    KeepGuard(const KeepGuard&) = delete;
    KeepGuard& operator=(const KeepGuard&) = delete;
    ~KeepGuard() { tape_.kept_ = before_; }

   private:
    Tape& tape_;
    KeptProjections<Device>* before_;
  };
  /// Until the guard goes, passes that are not recorded keep the keys and values of their text in `kept`.
  [[nodiscard]] KeepGuard keeping(KeptProjections<Device>& kept) { return KeepGuard(*this, &kept); }
  /// Null where nothing is kept.
  KeptProjections<Device>* kept_projections() const { return recording_ ? nullptr : kept_; }

  /// Counts the calls of `clear()`, so that a Var of an earlier pass is known.
  std::uint32_t pass() const { return pass_; }

  Arena::Mark mark() { return context_.activations().mark(); }

  Slot* make_slot(std::size_t bytes, bool requires_gradient) {
    auto* slot = new (meta_.allocate(sizeof(Slot))) Slot;
    slot->bytes = bytes;
    slot->data = context_.activations().allocate(bytes);
    met_trainable_ = met_trainable_ || requires_gradient;
    if (requires_gradient && recording_) require_gradient(slot);
    return slot;
  }

  /// From now on `slot` takes part in backward.
  void require_gradient(Slot* slot) {
    slot->requires_gradient = true;
    track(slot);
  }

  /// Runs `block()` without recording. `met_trainable` tells whether an operation in it had an input that requires a
  /// gradient, so whether recording would have left nodes.
  template <class Block>
  auto without_recording(Block&& block, bool& met_trainable) {
    const auto guard = inference();
    const bool before = std::exchange(met_trainable_, false);
    auto result = block();
    met_trainable = met_trainable_;
    met_trainable_ = met_trainable_ || before;
    return result;
  }

  /// A slot over memory that somebody else owns.
  Slot* make_external_slot(const void* data, std::size_t bytes, bool requires_gradient) {
    auto* slot = new (meta_.allocate(sizeof(Slot))) Slot;
    slot->bytes = bytes;
    slot->data = static_cast<std::byte*>(const_cast<void*>(data));
    if (requires_gradient) require_gradient(slot);
    return slot;
  }

  /// Memory that lives as long as the activations allocated now.
  template <class T>
  T* allocate(index_t count) {
    return reinterpret_cast<T*>(context_.activations().allocate(static_cast<std::size_t>(count) * sizeof(T)));
  }

  /// Appends a node. `run(tape)` propagates the gradient of `out` to the inputs; it is skipped when nothing downstream
  /// needed `out`. `mark` is where the arena stood before the operation allocated anything.
  template <class Run>
  void push(Arena::Mark mark, Slot* out, Run run) {
    static_assert(std::is_trivially_destructible_v<Run>, "lpo Tape: nodes capture Vars, pointers and numbers only");
    struct Typed : Node {
      explicit Typed(Run r) : run(r) {}
      Run run;
    };
    auto* node = new (meta_.allocate(sizeof(Typed))) Typed(run);
    node->call = [](Node* self, Tape& tape) { static_cast<Typed*>(self)->run(tape); };
    node->previous = last_;
    node->out = out;
    node->mark = mark;
    last_ = node;
  }

  /// The gradient buffer of a slot, allocated on first use.
  std::byte* gradient(Slot* slot) {
    if (slot->gradient == nullptr) slot->gradient = context_.gradients().allocate(slot->bytes);
    return slot->gradient;
  }

  /// Position on the tape; `run_back_to` undoes everything after it. The values that it undoes are gone: they no longer
  /// require gradients, so that a second backward through them is an error and not a silent zero.
  Node* position() const { return last_; }
  void run_back_to(Node* stop) {
    while (last_ != stop) {
      Node* node = last_;
      last_ = node->previous;
      if (node->out->written) node->call(node, *this);
      release(node->out);
      node->out->requires_gradient = false;
      context_.activations().rewind(node->mark);
    }
  }

  /// Forgets all nodes and gives back activations and gradients (parameters keep theirs). All Vars of the tape are gone then:
  /// constants and variables too are made anew for the next pass.
  void clear() {
    ++pass_;
    for (Tracked* t = tracked_; t != nullptr; t = t->previous) release(t->slot);
    tracked_ = nullptr;
    last_ = nullptr;
    meta_.rewind({});
    context_.activations().rewind(start_);
  }

  /// Activations and bookkeeping as they are now; `rewind` frees what came later, which must not have been recorded.
  Snapshot snapshot() const { return {context_.activations().mark(), meta_.mark(), last_, tracked_}; }
  void rewind(const Snapshot& to) {
    context_.activations().rewind(to.activations);
    if (last_ != to.last || tracked_ != to.tracked) return;
    meta_.rewind(to.meta);
  }

 private:
  void track(Slot* slot) { tracked_ = new (meta_.allocate(sizeof(Tracked))) Tracked{slot, tracked_}; }

  void release(Slot* slot) {
    if (slot->persistent || slot->gradient == nullptr) return;
    context_.gradients().release(slot->gradient, slot->bytes);
    slot->gradient = nullptr;
    slot->written = false;
    slot->written_parts = 0;
  }

  Context<Device>& context_;
  Arena::Mark start_;
  Arena meta_{std::size_t{1} << 16};
  Node* last_ = nullptr;
  Tracked* tracked_ = nullptr;
  bool recording_ = true;
  bool adapters_ = true;
  bool checkpointing_ = false;
  bool met_trainable_ = false;
  std::uint32_t pass_ = 0;
  KeptProjections<Device>* kept_ = nullptr;
};

}  // namespace lpo::inline LPO_ABI
