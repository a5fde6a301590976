// SPDX-License-Identifier: MIT
// bare_clip_text: turns a text encoder's file into what transformers 5 saves, names without the outer "text_model".
#pragma once

#include <string>

#include <lpo/io/safetensors_file.hpp>
#include <lpo/io/safetensors_writer.hpp>

inline void bare_clip_text(const std::string& path) {
  lpo::SafetensorsWriter writer;
  const lpo::SafetensorsFile file(path);
  for (const std::string& key : file.keys()) {
    const lpo::TensorInfo& info = file.info(key);
    const std::string module = "text_model.";
    writer.add_pieces(key.starts_with(module) ? key.substr(module.size()) : key, info.dtype, info.shape,
                      {{info.dtype, info.data, info.count()}});
  }
  writer.write(path);
}
