// SPDX-License-Identifier: MIT
// The `lora` program: inspect, check, merge, convert and extract LoRA files of diffusers, peft and kohya's tools.
#include <CLI/CLI.hpp>

#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <lpo/backend/cpu/truncated_svd.hpp>
#include <lpo/io/lora_convert.hpp>
#include <lpo/io/lora_extract.hpp>
#include <lpo/io/lora_merge.hpp>

#include "common/console.hpp"
#include "common/option_list.hpp"
#include "lora/inspect.hpp"
#include "lora/merge_folder.hpp"

namespace {

using lpo::index_t;

struct Options {
  std::string file, base, tuned, out, component, format = "diffusers", dtype = "keep";
  std::vector<std::string> targets;
  bool json = false, summary = false, fold_alpha = false, strict = false, force = false;
  double scale = 1.0;
  index_t rank = 16, kernel_rank = -1;
  int layers_per_block = 2;
};

lpo::LoraFormat format_of(const std::string& name) {
  return name == "kohya"       ? lpo::LoraFormat::kohya
         : name == "diffusers" ? lpo::LoraFormat::diffusers
                               : lpo::LoraFormat::diffusers_old;
}

/// A progress line for work of `total` units; throws CancelledError after Ctrl-C.
class Meter {
 public:
  explicit Meter(const std::string& stage) : stage_(stage) {}
  void operator()(std::size_t done, std::size_t total) {
    if (!reporter_) reporter_.emplace(stage_, 0, static_cast<index_t>(total), examples::ProgressBar());
    if (!reporter_->report(static_cast<index_t>(done))) throw lpo::CancelledError("[lora] nothing was written");
  }

 private:
  std::string stage_;
  std::optional<lpo::ProgressReporter> reporter_;
};

/// The same for a writer's bytes, in MiB; none for small files.
lpo::WriteCallback byte_meter(const std::string& stage) {
  return [meter = Meter(stage)](const std::string&, std::size_t done, std::size_t total) mutable {
    if (total >> 20 > 0) meter(done >> 20, total >> 20);  // throws when interrupted
    return true;
  };
}

void warn_unmatched(const std::vector<std::string>& keys) {
  if (!keys.empty())
    std::fprintf(stderr, "lora: warning: %zu keys find no weight in the base: %s\n", keys.size(),
                 lpo::detail::listed(keys).c_str());
}

int inspect(const Options& o) {
  const lpo::LoraFile file(o.file, o.layers_per_block);
  const std::string text =
      o.json ? lora_tool::inspect_json(file).dump(2) + "\n" : lora_tool::inspect_text(file, !o.summary);
  std::fputs(text.c_str(), stdout);
  return 0;
}

int check(const Options& o) {
  const auto base = lpo::open_base(o.base, o.component);
  const lpo::LoraFile file(o.file, lpo::layers_per_block_of(base));
  const auto result = lora_tool::check_lora(file, base);
  const std::string text =
      o.json ? lora_tool::check_json(result).dump(2) + "\n" : lora_tool::check_text(result, file.adapters().size());
  std::fputs(text.c_str(), stdout);
  return result.good() ? 0 : 1;
}

int merge(const Options& o) {
  const auto base = lpo::open_base(o.base, o.component);
  const lpo::LoraFile file(o.file, lpo::layers_per_block_of(base));
  const auto fit = lpo::fit_lora(file, base);
  if (o.strict && !fit.unmatched.empty())
    throw lpo::FileError(lpo::message("[lora] ", o.file, ": ", fit.unmatched.size(), " keys find no weight in ", o.base,
                                      ": ", lpo::detail::listed(fit.unmatched)));
  lpo::LoraMergeOptions options{o.scale, examples::dtype_of(o.dtype), {}, o.force};
  if (lpo::directory_exists(o.base)) {
    lora_tool::merge_folder(file, o.base, base, o.out, options,
                            [](const lpo::BaseComponent& part) { return byte_meter(part.name + " (MiB)"); });
  } else {
    options.progress = byte_meter(base.front().name + " (MiB)");
    lpo::merge_lora_file(file, base, fit, base.front(), o.out, options);
  }
  warn_unmatched(fit.unmatched);
  std::printf("merged %zu of %zu adapters at scale %s; wrote %s\n", fit.targets.size(), file.adapters().size(),
              lora_tool::number_text(o.scale).c_str(), o.out.c_str());
  return 0;
}

int convert(const Options& o) {
  std::vector<lpo::BaseComponent> base;
  if (!o.base.empty()) base = lpo::open_base(o.base, o.component);
  const lpo::LoraFile file(o.file, base.empty() ? o.layers_per_block : lpo::layers_per_block_of(base));
  lpo::LoraOptions options;
  options.format = format_of(o.format);
  options.dtype = examples::dtype_of(o.dtype);
  options.fold_alpha = o.fold_alpha;
  lpo::convert_lora(file, o.out, options, base);
  if (!file.unknown_keys().empty())
    std::fprintf(stderr, "lora: warning: %zu keys belong to no adapter and were left out: %s\n",
                 file.unknown_keys().size(), lpo::detail::listed(file.unknown_keys()).c_str());
  std::printf("converted %zu adapters to %s, read them again; wrote %s\n", file.adapters().size(), o.format.c_str(),
              o.out.c_str());
  return 0;
}

int extract(const Options& o) {
  lpo::LoraExtractOptions options;
  options.rank = o.rank;
  options.kernel_rank = o.kernel_rank;
  options.targets = o.targets;
  options.file.format = format_of(o.format);
  options.file.dtype = examples::dtype_of(o.dtype == "keep" ? "float32" : o.dtype);
  Meter meter("weights");
  std::size_t weights = 0;
  options.before_weight = [&](const std::string&, std::size_t done, std::size_t total) {
    weights = total;
    if (done > 0) meter(done, total);
  };
  const auto report =
      lpo::extract_lora(lpo::open_base(o.base, o.component), lpo::open_base(o.tuned, o.component), o.out, options,
                        [](const double* a, index_t rows, index_t columns, index_t rank) {
                          return lpo::truncated_svd(a, rows, columns, rank);
                        });
  meter(weights, weights);
  std::printf("energy   norm of delta W   rank   module\n");
  for (const auto& layer : report.layers)
    std::printf("%6.2f %%   %15.6g   %4lld   %s.%s\n", 100 * layer.energy, layer.norm,
                static_cast<long long>(layer.rank), layer.component.c_str(), layer.path.c_str());
  if (!report.left_out.empty())
    std::fprintf(stderr, "lora: warning: %zu changed weights are not in the LoRA: %s\n", report.left_out.size(),
                 lpo::detail::listed(report.left_out).c_str());
  std::printf("%zu adapters hold %.2f %% of the difference's energy, %zu weights are unchanged; wrote %s\n",
              report.layers.size(), 100 * report.energy(), report.unchanged, o.out.c_str());
  return 0;
}

constexpr const char* base_text =
    "a pipeline's folder (unet/, text_encoder/ ...), a component's folder, or one safetensors file";

CLI::IsMember formats() { return CLI::IsMember({"diffusers", "diffusers_old", "kohya"}); }

void add_component(CLI::App& command, Options& o) {
  command.add_option("--component", o.component,
                     "what a single file or component is: unet, text_encoder or text_encoder_2; told by its weights "
                     "otherwise");
}

void add_layers(CLI::App& command, Options& o) {
  command
      .add_option(examples::both_spellings("layers_per_block"), o.layers_per_block,
                  "residual blocks per level of the UNet, for files with ldm's block numbers")
      ->capture_default_str()
      ->check(CLI::Range(1, 16));
}

void add_dtype(CLI::App& command, Options& o, const char* text) {
  command.add_option("--dtype", o.dtype, text)->capture_default_str()->check(examples::dtype_or_keep());
}

CLI::App* add_inspect(CLI::App& app, Options& o) {
  auto* command = app.add_subcommand("inspect", "Show format, ranks, alphas, targets, norms of delta W, metadata.");
  command->add_option("file", o.file, "a LoRA file")->required();
  command->add_flag("--json", o.json, "print JSON");
  command->add_flag("--summary", o.summary, "do not list every module");
  add_layers(*command, o);
  return command;
}

CLI::App* add_check(CLI::App& app, Options& o) {
  auto* command =
      app.add_subcommand("check", "Compare a LoRA with its base model; exit status 1 unless every key matches.");
  command->add_option("file", o.file, "a LoRA file")->required();
  command->add_option("--base", o.base, base_text)->required();
  add_component(*command, o);
  command->add_flag("--json", o.json, "print JSON");
  return command;
}

CLI::App* add_merge(CLI::App& app, Options& o) {
  auto* command = app.add_subcommand("merge", "Add a LoRA to the weights of its base model.");
  command->add_option("base", o.base, base_text)->required();
  command->add_option("lora", o.file, "a LoRA file")->required();
  command->add_option("out", o.out, "a new folder if the base is one (all its other files are copied), else a file")
      ->required();
  command->add_option("--scale", o.scale, "strength; -1 takes a merged LoRA away")->capture_default_str();
  add_dtype(*command, o, "type of the weights written");
  add_component(*command, o);
  command->add_flag("--strict", o.strict, "refuse a LoRA with keys that find no weight");
  command->add_flag("--force", o.force, "merge although weights or the LoRA hold NaN or infinities");
  return command;
}

CLI::App* add_convert(CLI::App& app, Options& o) {
  auto* command = app.add_subcommand("convert", "Write a LoRA in another convention, then read it again and compare.");
  command->add_option("in", o.file, "a LoRA file")->required();
  command->add_option("out", o.out, "the file to write")->required();
  command->add_option("--format", o.format, "convention")->required()->check(formats());
  add_dtype(*command, o, "type of the matrices");
  command->add_flag(examples::both_spellings("fold_alpha"), o.fold_alpha,
                    "multiply alpha / rank into the matrices, for programs that overlook alpha");
  command->add_option("--base", o.base, std::string("names of other architectures come from here: ") + base_text);
  add_component(*command, o);
  add_layers(*command, o);
  return command;
}

CLI::App* add_extract(CLI::App& app, Options& o) {
  auto* command = app.add_subcommand("extract", "Write the difference of two checkpoints as a LoRA of some rank.");
  command->add_option("base", o.base, base_text)->required();
  command->add_option("tuned", o.tuned, "the same after training")->required();
  command->add_option("out", o.out, "the file to write")->required();
  command->add_option("--rank", o.rank, "rank of every adapter")->capture_default_str()->check(examples::positive);
  command
      ->add_option(examples::both_spellings("conv_rank"), o.kernel_rank,
                   "rank for convolutions larger than 1x1; 0 leaves them out, -1 takes --rank")
      ->capture_default_str()
      ->check(CLI::Range(-1, 1 << 20));
  command
      ->add_option("--targets", o.targets, "ends of module names (to_q,to_k,to_v,to_out.0); all that changed otherwise")
      ->delimiter(',');
  command->add_option("--format", o.format, "convention")->capture_default_str()->check(formats());
  add_dtype(*command, o, "type of the matrices; keep means float32");
  add_component(*command, o);
  return command;
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app{"Inspect, check, merge, convert and extract LoRA files of diffusers, peft and kohya's tools.", "lora"};
  examples::add_version_option(app, "lora");
  app.require_subcommand(1);
  const std::pair<CLI::App*, int (*)(const Options&)> commands[] = {{add_inspect(app, o), inspect},
                                                                    {add_check(app, o), check},
                                                                    {add_merge(app, o), merge},
                                                                    {add_convert(app, o), convert},
                                                                    {add_extract(app, o), extract}};
  examples::expect_finite_numbers(app);
  CLI11_PARSE(app, argc, argv);
  int status = 0;
  const int failed = examples::run("lora", [&] {
    for (const auto& [command, action] : commands)
      if (command->parsed()) status = action(o);
  });
  return failed != 0 ? failed : status;
}
