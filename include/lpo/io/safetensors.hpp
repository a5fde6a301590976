// SPDX-License-Identifier: MIT
// Everything about safetensors: reading a file, reading a directory with shards, writing.
#pragma once

#include <lpo/io/checkpoint.hpp>
#include <lpo/io/safetensors_file.hpp>
#include <lpo/io/safetensors_writer.hpp>
