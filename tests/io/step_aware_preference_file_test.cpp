// SPDX-License-Identifier: MIT
// Files of step-aware preference models: written and read again, under the authors' prefix, and begun from plain CLIP.
#include <lpo/io/step_aware_preference_file.hpp>

#include <doctest/doctest.h>

#include <lpo/io/safetensors_file.hpp>

#include "../stored_models.hpp"
#include "error_text.hpp"
#include "temporary_directory.hpp"

using namespace lpo;

namespace {

inline constexpr ClipVisionConfig tower{
    .width = 8, .hidden = 12, .layers = 1, .heads = 2, .image_size = 8, .patch = 4, .projection = 6, .time_modulated = true};
inline constexpr ClipTextConfig words{.vocabulary = 20, .width = 8, .hidden = 12, .layers = 1, .heads = 2, .positions = 7, .projection = 6};
using Model = StepAwarePreferenceModel<tower, words, float, Reference>;

std::vector<float> values_of(StoredModel<Model>& model) { return {model.store.values().begin(), model.store.values().end()}; }

/// The tensors of a file that `keep` accepts, under a prefix.
template <class Keep>
void copy(const std::string& from, const std::string& to, const std::string& prefix, const Keep& keep) {
  const SafetensorsFile file(from);
  SafetensorsWriter writer;
  for (const std::string& key : file.keys()) {
    const TensorInfo& info = file.info(key);
    if (keep(key)) writer.add_stored(prefix + key, info.dtype, info.dtype, info.shape, info.data);
  }
  writer.write(to);
}

}  // namespace

TEST_CASE("a preference model that was saved is loaded again; its logit scale is a number") {
  const TemporaryDirectory directory;
  StoredModel<Model> model, other;
  model.store.initialize(3);
  save_preference_model(directory.file("saved"), *model, model.store);
  const std::string path = directory.file("saved/model.safetensors");
  CHECK(SafetensorsFile(path).info("logit_scale").shape.empty());
  CHECK(SafetensorsFile(path).metadata().at("format") == "pt");
  CHECK(load_preference_model(directory.file("saved"), *other, other.store).unused.empty());
  CHECK(values_of(other) == values_of(model));

  StoredModel<Model> prefixed;
  copy(path, directory.file("authors.safetensors"), "model.", [](const std::string&) { return true; });
  load_preference_model(directory.file("authors.safetensors"), *prefixed, prefixed.store);
  CHECK(values_of(prefixed) == values_of(model));
}

TEST_CASE("a preference model begins with a plain CLIP model and keeps its own time modulation") {
  const TemporaryDirectory directory;
  StoredModel<Model> model, begun;
  model.store.initialize(3);
  begun.store.initialize(4);
  save_preference_model(directory.file("saved"), *model, model.store);
  const std::string plain = directory.file("clip.safetensors");
  copy(directory.file("saved/model.safetensors"), plain, "", [](const std::string& key) { return !detail::is_time_modulation(key); });
  const auto before = values_of(begun);
  CHECK(has_part(message_of<FileError>([&] { load_preference_model(plain, *begun, begun.store); }), "t_embedder."));
  CHECK(values_of(begun) == before);
  load_clip_model(plain, *begun, begun.store);
  for (const auto& [name, parameter] : begun.store.entries()) {
    const auto source = detail::is_time_modulation(name) ? before : values_of(model);
    const auto offset = parameter->data() - begun.store.values().data();
    CHECK_MESSAGE(std::equal(parameter->data(), parameter->data() + parameter->size(), source.begin() + offset), name);
  }
}

TEST_CASE("a writer gives a tensor another shape of as many elements") {
  SafetensorsWriter writer;
  writer.add_owned("a", DType::F32, {2, 3}, std::vector<float>(6));
  writer.reshape("a", {6});
  CHECK(writer.plan()[0].shape == std::vector<index_t>{6});
  CHECK(has_part(message_of<ValueError>([&] { writer.reshape("a", {5}); }), "has 6 values"));
  CHECK(has_part(message_of<ValueError>([&] { writer.reshape("b", {1}); }), "no tensor \"b\""));
}
