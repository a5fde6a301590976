// SPDX-License-Identifier: MIT
// TorchFile: reads the tensors of one file that torch.save wrote (.bin, .pt, .pth, .ckpt); executes nothing of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>
#include <lpo/base/extents.hpp>
#include <lpo/io/dtype.hpp>
#include <lpo/io/file.hpp>
#include <lpo/io/pickle.hpp>
#include <lpo/io/tensor_table.hpp>
#include <lpo/io/torch_types.hpp>
#include <lpo/io/zip_archive.hpp>

namespace lpo::inline LPO_ABI {

/// A checkpoint of torch 1.6 or later: a zip archive with a pickle and the bytes of every storage. Nested dictionaries
/// are flattened with dots, so {"head": {"weight": t}} has the key "head.weight"; list items are numbered. Python
/// numbers are scalars (F64, I64, BOOL), texts are metadata; None, sizes, devices and types are left out. Of a training
/// checkpoint with a "state_dict" only that is read, without the prefix. Contiguous tensors point into the mapped file;
/// others are copied once.
class TorchFile : public TensorTable {
 public:
  /// Maps `path` and checks everything but the values. FileError names the file, the tensor, what was found and
  /// expected; for files that only Python can read, it says how to write them again.
  explicit TorchFile(const std::string& path) : TensorTable("torch", path) {
    const auto mapping = std::make_shared<const MappedFile>(path);
    keep(mapping);
    load(mapping->text());
  }

  /// The same for bytes in memory, which the caller keeps alive; `name` stands in for the path in messages.
  static TorchFile from_memory(const void* data, std::size_t size, std::string name) {
    TorchFile file;
    file.name_ = std::move(name);
    file.load({static_cast<const char*>(data), size});
    return file;
  }

 private:
  TorchFile() : TensorTable("torch", "") {}

  using Kind = PickleValue::Kind;
  static constexpr int depth_limit = 32;
  static constexpr std::size_t key_limit = 1024, visit_limit = std::size_t{1} << 18;

  struct Reading {
    const ZipArchive& archive;
    const std::string folder;  ///< that all entries are in, with its slash
    const Pickle& pickle;
    std::size_t visits_left;  ///< objects that refer to each other could otherwise unfold without end
    std::size_t copy_bytes_left;
  };

  /// Where a tensor's elements are stored.
  struct Storage {
    std::string_view bytes;
    std::string_view type;  ///< "torch.FloatStorage"
    std::int64_t elements = 0;
  };

  void load(std::string_view bytes) {
    refuse_other_formats(bytes);
    const ZipArchive archive(bytes, name_);
    const std::string folder = find_folder(archive);
    if (archive.contains(folder + "byteorder") && archive.content(folder + "byteorder") != "little")
      fail("was written on a big-endian machine; only little-endian files are read");
    if (archive.contains(folder + "constants.pkl"))
      fail("is a TorchScript archive; save its weights alone: torch.save(torch.jit.load(\"…\").state_dict(), \"…\")");
    const Pickle pickle =
        parse_pickle(archive.content(folder + "data.pkl"), name_ + ": " + folder + "data.pkl", detail::torch_globals());
    Reading reading{archive, folder, pickle, visit_limit, 4 * bytes.size() + (std::size_t{1} << 20)};
    const std::uint32_t root = find_root(pickle);
    const Kind kind = pickle[root].kind;
    if (kind != Kind::dict && kind != Kind::list && kind != Kind::tuple)
      fail("holds a single object, expected a dictionary of tensors; save {\"name\": tensor}");
    add(reading, "", root, 0);
  }

  void refuse_other_formats(std::string_view bytes) const {
    if (bytes.starts_with("PK")) return;
    const char* const again =
        "; write it again with a newer torch: torch.save(torch.load(\"…\", weights_only=True), \"…\")";
    if (bytes.size() > 2 && bytes.substr(2).starts_with("\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"))
      fail("was written by a torch older than 1.6, or without its zip format", again);
    if (bytes.starts_with('\x80')) fail("is a plain Python pickle, expected a file of torch.save", again);
    if (bytes.size() > 8 && bytes[8] == '{') fail("looks like safetensors; give it the ending .safetensors");
    fail("has ", bytes.size(), " bytes and is no zip archive, expected a file of torch.save");
  }

  /// All entries of an archive are in one folder, whose name torch chooses.
  std::string find_folder(const ZipArchive& archive) const {
    for (const auto& [name, entry] : archive.entries())
      if (name.ends_with("/data.pkl") && name.find('/') == name.size() - 9)
        return std::string(name.substr(0, name.size() - 8));
    fail("is a zip archive without a data.pkl, expected a file of torch.save");
  }

  /// The "state_dict" of a training checkpoint, or the whole.
  static std::uint32_t find_root(const Pickle& pickle) {
    const PickleValue& whole = pickle[pickle.root];
    if (whole.kind == Kind::dict)
      for (std::size_t i = 0; i + 1 < whole.items.size(); i += 2)
        if (pickle[whole.items[i]].text == "state_dict" && pickle[whole.items[i + 1]].kind == Kind::dict)
          return whole.items[i + 1];
    return pickle.root;
  }

  /// Adds object `number` and what it holds under `key`.
  void add(Reading& reading, const std::string& key, std::uint32_t number, int depth) {
    if (depth > depth_limit) fail("nests deeper than ", depth_limit, " levels at \"", key.substr(0, 60), "…\"");
    if (key.size() > key_limit) fail("has a key longer than ", key_limit, " bytes: \"", key.substr(0, 60), "…\"");
    if (reading.visits_left-- == 0) fail("unfolds to more than ", visit_limit, " objects");
    const PickleValue& value = reading.pickle[number];
    const auto add_item = [&](const std::string& name, std::uint32_t item) {
      add(reading, key.empty() ? name : key + "." + name, item, depth + 1);
    };
    switch (value.kind) {
      case Kind::dict:
        for (std::size_t i = 0; i + 1 < value.items.size(); i += 2)
          add_item(key_text(reading.pickle[value.items[i]], key), value.items[i + 1]);
        break;
      case Kind::list:
      case Kind::tuple:
        for (std::size_t i = 0; i < value.items.size(); ++i) add_item(message(i), value.items[i]);
        break;
      case Kind::boolean:
        insert(key, scalar(DType::BOOL, static_cast<std::uint8_t>(value.integer)));
        break;
      case Kind::integer:
        insert(key, scalar(DType::I64, value.integer));
        break;
      case Kind::number:
        insert(key, scalar(DType::F64, value.number));
        break;
      case Kind::text:
        metadata_[key] = std::string(value.text);
        break;
      case Kind::call:
        add_call(reading, key, value, depth);
        break;
      case Kind::persistent:
        fail("\"", key, "\" is a bare storage, expected tensors");
      case Kind::none:
      case Kind::bytes:
      case Kind::global:
        break;
    }
  }

  std::string key_text(const PickleValue& key, const std::string& parent) const {
    if (key.kind == Kind::text) return std::string(key.text);
    if (key.kind == Kind::integer) return message(key.integer);
    fail("the dictionary \"", parent, "\" has a key that is neither text nor integer");
  }

  void add_call(Reading& reading, const std::string& key, const PickleValue& call, int depth) {
    const std::string_view function = reading.pickle[call.items[0]].text;
    const std::vector<std::uint32_t>& arguments = reading.pickle[call.items[1]].items;
    if (function == detail::torch_tensor || function == detail::torch_typed_tensor) {
      insert(key, read_tensor(reading, key, function, arguments));
    } else if (function == detail::torch_parameter || function == detail::torch_parameter_with_state) {
      if (arguments.empty()) fail("parameter \"", key, "\" has no tensor");
      add(reading, key, arguments[0], depth + 1);
    } else if (function != "torch.Size" && function != "torch.device") {
      fail("\"", key, "\" calls ", function, ", which is no function that makes tensors");
    }
  }

  void insert(const std::string& key, TensorInfo tensor) {
    if (!tensors_.emplace(key, std::move(tensor)).second) fail("has two entries \"", key, "\"");
  }

  std::byte* allocate(std::size_t bytes) {
    const auto memory = std::make_shared<std::vector<std::byte>>(bytes);
    keep(memory);
    return memory->data();
  }

  template <class T>
  TensorInfo scalar(DType dtype, T value) {
    std::byte* const data = allocate(sizeof value);
    std::memcpy(data, &value, sizeof value);
    return {dtype, {}, data, sizeof value};
  }

  /// Arguments of _rebuild_tensor_v2: storage, offset, size, stride, requires_grad, hooks; _v3 adds the type.
  TensorInfo read_tensor(Reading& reading, const std::string& key, std::string_view function,
                         const std::vector<std::uint32_t>& arguments) {
    const Pickle& pickle = reading.pickle;
    const bool typed = function == detail::torch_typed_tensor;
    if (arguments.size() < (typed ? 7u : 6u))
      fail("tensor \"", key, "\" is incomplete: ", arguments.size(), " arguments");
    const Storage storage = find_storage(reading, key, pickle[arguments[0]]);
    const std::string_view type = typed ? pickle[arguments[6]].text : storage.type;
    const auto dtype = detail::dtype_of_torch(type);
    if (!dtype) fail("tensor \"", key, "\" has the type ", type.empty() ? "(none)" : type, ", which lpo does not have");
    const std::size_t width = dtype_size(*dtype);
    // An untyped storage counts bytes.
    const auto element_bytes = storage.type == detail::torch_untyped_storage ? std::size_t{1} : width;
    if (storage.elements < 0 || static_cast<std::uint64_t>(storage.elements) != storage.bytes.size() / element_bytes ||
        storage.bytes.size() % element_bytes != 0)
      fail("tensor \"", key, "\" is stored in ", storage.bytes.size(), " bytes, expected ", storage.elements,
           " elements of ", element_bytes, "; the file is damaged");

    TensorInfo tensor{*dtype, integers(pickle, key, "size", arguments[2]), nullptr, 0};
    const std::vector<index_t> strides = integers(pickle, key, "stride", arguments[3]);
    const PickleValue& offset = pickle[arguments[1]];
    if (strides.size() != tensor.shape.size() || offset.kind != Kind::integer || offset.integer < 0)
      fail("tensor \"", key, "\" of shape ", shape_text(tensor.shape), " has an impossible stride or offset");
    // Bytes of the tensor, and the element after its last one in the storage.
    std::size_t bytes = width;
    index_t end = 1;
    bool empty = false, overflow = __builtin_add_overflow(offset.integer, end, &end), contiguous = true;
    for (std::size_t axis = tensor.shape.size(); axis-- > 0;) {
      const index_t extent = tensor.shape[axis];
      index_t reach = 0;
      contiguous = contiguous && (extent == 1 || static_cast<std::size_t>(strides[axis]) == bytes / width);
      empty = empty || extent == 0;
      overflow = overflow || __builtin_mul_overflow(bytes, extent, &bytes) ||
                 __builtin_mul_overflow(extent - 1, strides[axis], &reach) || __builtin_add_overflow(end, reach, &end);
    }
    tensor.data = reinterpret_cast<const std::byte*>(storage.bytes.data());
    if (empty) return tensor;
    if (overflow || static_cast<std::uint64_t>(end) > storage.bytes.size() / width)
      fail("tensor \"", key, "\" of shape ", shape_text(tensor.shape), ", stride ", shape_text(strides), " and offset ",
           offset.integer, " reaches beyond its storage of ", storage.bytes.size() / width, " elements");
    tensor.bytes = bytes;
    tensor.data += static_cast<std::size_t>(offset.integer) * width;
    if (!contiguous) {
      if (bytes > reading.copy_bytes_left)
        fail("tensor \"", key, "\" of shape ", shape_text(tensor.shape), " and stride ", shape_text(strides),
             " repeats few stored elements too often; save its contiguous().clone()");
      reading.copy_bytes_left -= bytes;
      std::byte* const copy = allocate(bytes);
      copy_strided(tensor, strides, copy);
      tensor.data = copy;
    }
    return tensor;
  }

  /// A persistent id is ("storage", type, name of the entry, device, elements).
  Storage find_storage(const Reading& reading, const std::string& key, const PickleValue& value) const {
    const Pickle& pickle = reading.pickle;
    const auto* const id = value.kind == Kind::persistent ? &pickle[value.items[0]] : nullptr;
    if (id == nullptr || id->kind != Kind::tuple || id->items.size() < 5 || pickle[id->items[0]].text != "storage" ||
        pickle[id->items[1]].kind != Kind::global || pickle[id->items[2]].kind != Kind::text ||
        pickle[id->items[4]].kind != Kind::integer)
      fail("tensor \"", key, "\" has no storage that torch.save would write");
    const std::string entry = reading.folder + "data/" + std::string(pickle[id->items[2]].text);
    if (!reading.archive.contains(entry)) fail("tensor \"", key, "\" is stored in \"", entry, "\", which is not there");
    return {reading.archive.content(entry), pickle[id->items[1]].text, pickle[id->items[4]].integer};
  }

  std::vector<index_t> integers(const Pickle& pickle, const std::string& key, const char* what,
                                std::uint32_t number) const {
    std::vector<index_t> values;
    // torch.Size((2, 3)) is a tuple too.
    if (pickle[number].kind == Kind::call && pickle[pickle[number].items[0]].text == "torch.Size" &&
        pickle[pickle[number].items[1]].items.size() == 1)
      number = pickle[pickle[number].items[1]].items[0];
    bool good = pickle[number].kind == Kind::tuple && pickle[number].items.size() <= 64;
    if (good)
      for (const std::uint32_t item : pickle[number].items) {
        good = good && pickle[item].kind == Kind::integer && pickle[item].integer >= 0;
        values.push_back(pickle[item].integer);
      }
    if (!good) fail("tensor \"", key, "\" has a ", what, " that is no tuple of at most 64 non-negative integers");
    return values;
  }

  /// Row-major copy of a tensor whose elements are `strides` apart in the file.
  static void copy_strided(const TensorInfo& tensor, const std::vector<index_t>& strides, std::byte* to) {
    const std::size_t width = dtype_size(tensor.dtype), rank = tensor.shape.size();
    std::vector<index_t> at(rank, 0);
    index_t element = 0;
    for (std::size_t done = 0; done < tensor.bytes; done += width) {
      std::memcpy(to + done, tensor.data + static_cast<std::size_t>(element) * width, width);
      for (std::size_t axis = rank; axis-- > 0;) {
        element += strides[axis];
        if (++at[axis] < tensor.shape[axis]) break;
        element -= tensor.shape[axis] * strides[axis];
        at[axis] = 0;
      }
    }
  }
};

}  // namespace lpo::inline LPO_ABI
