// SPDX-License-Identifier: MIT
// Converts Stable Diffusion checkpoints between the single-file layout and diffusers' folders, in either direction.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "../common/console.hpp"
#include "../common/option_list.hpp"
#include "conversion.hpp"

namespace {

double megabytes(std::size_t bytes) { return static_cast<double>(bytes) / 1e6; }

void print_plan(const conversion::Plan& plan, bool tensors) {
  for (const auto& weights : plan.weights) {
    std::printf("%s: %zu tensors, %.1f MB\n", weights.path.c_str(), weights.writer.size(),
                megabytes(weights.writer.data_bytes()));
    if (!tensors) continue;
    for (const lpo::PlannedTensor& t : weights.writer.plan())
      std::printf("  %-5s %-22s %12zu bytes  %s\n", std::string(lpo::dtype_name(t.dtype)).c_str(),
                  lpo::shape_text(t.shape).c_str(), t.bytes, t.name.c_str());
  }
  for (const auto& [folder, vocabulary] : plan.tokenizers)
    std::printf("%s: %zu tokens\n", folder.c_str(), vocabulary.tokens.size());
  for (const auto& [path, text] : plan.texts) std::printf("%s: %zu bytes\n", path.c_str(), text.size());
}

void program(int argc, char** argv) {
  conversion::Options o;
  std::string dtype = "keep";
  bool dry_run = false;
  CLI::App app{
      "Convert a Stable Diffusion checkpoint (v1, v2, XL): a single .safetensors file becomes a diffusers folder, a "
      "diffusers "
      "folder becomes a single file. Any width; memory stays far below the size of the file."};
  examples::add_version_option(app, "convert");
  app.add_option("from", o.from, "a single .safetensors file, or a diffusers folder")->required();
  app.add_option("to", o.to, "a folder, or the name of a single .safetensors file")->required();
  app.add_option("--dtype", dtype, "type of the weights")->capture_default_str()->check(examples::dtype_or_keep());
  app.add_option("--variant", o.variant, "fp16: the folder's weights are named *.fp16.safetensors");
  app.add_option("--component", o.component, "convert this part only: unet, vae, text_encoder or text_encoder_2")
      ->check(CLI::IsMember({"unet", "vae", "text_encoder", "text_encoder_2"}));
  app.add_option("--tokenizer", o.tokenizer, "folder of a CLIP tokenizer to put into the diffusers folder")
      ->check(CLI::ExistingDirectory);
  app.add_option("--config", o.config,
                 "diffusers folder whose config.json files are taken, instead of deducing them from the weights")
      ->check(CLI::ExistingDirectory);
  app.add_option("--prediction_type,--prediction-type", o.prediction_type,
                 "what the UNet predicts: epsilon or v_prediction")
      ->check(CLI::IsMember({"epsilon", "v_prediction"}));
  app.add_flag("--overwrite", o.overwrite, "replace files that exist");
  app.add_flag("--dry_run,--dry-run", dry_run, "list what would be written, with types, shapes and sizes");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::exit(app.exit(error));
  }
  o.dtype = examples::dtype_of(dtype);

  const conversion::Plan plan = conversion::make_plan(o);
  std::printf("%s: %s\n", o.from.c_str(), plan.summary.c_str());
  for (const std::string& note : plan.notes) std::fprintf(stderr, "note: %s\n", note.c_str());
  if (!dry_run) conversion::execute(plan, examples::ProgressBar{});
  print_plan(plan, dry_run);
}

}  // namespace

int main(int argc, char** argv) {
  return examples::run("convert", [&] { program(argc, argv); });
}
