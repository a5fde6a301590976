// SPDX-License-Identifier: MIT
// Every sampler in every setting against diffusers, the names, and what they do with a perfect predictor.
#include <lpo/diffusion/sampler.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/random.hpp>
#include <lpo/diffusion/sample.hpp>

#include "error_text.hpp"
#include "golden_file.hpp"

using lpo::index_t;
using lpo::NoiseSchedule;
using lpo::PredictionType;
using lpo::Reference;
using lpo::Sampler;
using lpo::SamplerKind;
using lpo::SchedulerConfig;
using lpo::Tensor;
using lpo::TimestepSpacing;

namespace {

constexpr lpo::Extents<4> extents{2, 1, 3, 4};
constexpr int step_counts[] = {1, 2, 5, 20};

/// The formula of tests/reference/goldens/samplers.py.
template <class T>
struct Formula {
  void predict(lpo::View<const T, 4, Reference> x, double t, lpo::View<T, 4, Reference> prediction) const {
    for (index_t i = 0; i < x.size(); ++i) {
      const double value = static_cast<double>(x.data[i]);
      prediction.data[i] = static_cast<T>(0.6 * std::tanh(0.8 * value + 0.3) + 0.2 * std::cos(0.003 * t) * value +
                                          0.1 * std::sin(0.01 * t));
    }
  }
};

bool has(const std::string& name, const std::string& part) {
  return ("/" + name + "/").find("/" + part + "/") != std::string::npos;
}

/// The setting that a key of the golden file names.
SchedulerConfig config_of(const std::string& name) {
  SchedulerConfig config;
  for (const auto spacing : {TimestepSpacing::leading, TimestepSpacing::trailing, TimestepSpacing::linspace})
    if (has(name, std::string(name_of(spacing)))) config.timestep_spacing = spacing;
  for (const auto type : {PredictionType::epsilon, PredictionType::v_prediction, PredictionType::sample})
    if (has(name, std::string(name_of(type)))) config.prediction_type = type;
  if (has(name, "squaredcos_cap_v2")) config.beta_schedule = lpo::BetaSchedule::squaredcos_cap_v2;
  config.rescale_betas_zero_snr = has(name, "zero_snr");
  config.use_karras_sigmas = has(name, "karras");
  config.set_alpha_to_one = has(name, "ddim_eta") || has(name, "alpha_to_one");
  config.euler_at_final = has(name, "euler_at_final");
  config.lower_order_final = !has(name, "higher_order");
  if (has(name, "sigma_min") || has(name, "euler_at_final") || has(name, "higher_order"))
    config.final_sigmas_type = lpo::FinalSigmasType::sigma_min;
  return config;
}

/// The largest error over the step counts of one setting.
template <class T>
double golden_error(const lpo::SafetensorsFile& file, const std::string& name) {
  const std::string sampler = name.substr(0, name.find('/'));
  const bool eta = sampler == "ddim_eta";
  const SamplerKind kind = eta ? SamplerKind::ddim : lpo::parse_sampler(sampler);
  const NoiseSchedule schedule(config_of(name));
  const auto truth = file.read_vector<double>(name);
  const auto start = file.read_vector<T>("in/start"), noises = file.read_vector<T>("in/noises");
  lpo::Context<Reference> context(1);
  double worst = 0;
  for (std::size_t row = 0; row < 4; ++row) {
    auto x = Tensor<T, 4, Reference>::from(extents, start);
    Formula<T> formula;
    std::size_t drawn = 0;
    const auto noise = [&](int, const lpo::View<T, 4, Reference>& z) {
      for (std::size_t i = 0; i < 24; ++i) z.data[i] = noises[drawn * 24 + i];
      ++drawn;
    };
    lpo::sample(context, Sampler(schedule, kind, step_counts[row], eta ? 0.7 : 0.0), formula, x.view(), noise);
    worst = std::max(worst, golden::relative_error(x.data(), truth.data() + 24 * row, 24));
  }
  return worst;
}

/// Knows the noise of every latent whose clean part is `clean`: call i is made at noise level sigmas[i].
struct Oracle {
  PredictionType type;
  double clean;
  std::vector<double> sigmas;
  std::size_t calls = 0;

  void predict(lpo::View<const double, 4, Reference> x, double, lpo::View<double, 4, Reference> prediction) {
    const double sigma = sigmas.at(calls++), signal = 1 / std::sqrt(1 + sigma * sigma), spread = sigma * signal;
    for (index_t i = 0; i < x.size(); ++i) {
      const double eps = (x.data[i] - signal * clean) / spread;
      prediction.data[i] = type == PredictionType::epsilon  ? eps
                           : type == PredictionType::sample ? clean
                                                            : signal * eps - spread * clean;
    }
  }
};

/// Where a sampler arrives with a perfect predictor for the clean value 0.8, as the largest distance from it.
double distance_from_clean(const NoiseSchedule& schedule, SamplerKind kind, int steps, std::vector<double> sigmas) {
  lpo::Context<Reference> context(1);
  Tensor<double, 4, Reference> x(extents);
  lpo::fill_normal(context, x.view(), {3, lpo::random_operation::initial_latents, 0});
  Oracle oracle{schedule.config().prediction_type, 0.8, std::move(sigmas)};
  lpo::sample(context, Sampler(schedule, kind, steps), oracle, x.view(), 3);
  double worst = 0;
  for (const double value : x.span()) worst = std::max(worst, std::fabs(value - 0.8));
  return worst;
}

struct WholeTimesteps {
  void predict(lpo::View<const float, 4, Reference>, int, lpo::View<float, 4, Reference>) {}
};
static_assert(lpo::NoisePredictor<Formula<float>, float, Reference>);
static_assert(!lpo::NoisePredictor<WholeTimesteps, float, Reference>, "951.4 would become 951");

}  // namespace

TEST_CASE("final latents of diffusers' samplers, every setting") {
  const auto file = golden::open("samplers");
  int settings = 0;
  for (const std::string& name : file.keys()) {
    if (name.starts_with("in/")) continue;
    CAPTURE(name);
    ++settings;
    CHECK(golden_error<double>(file, name) < 1e-10);
    CHECK(golden_error<float>(file, name) < 5e-6);
  }
  CHECK(settings == 270);
}

TEST_CASE("with a perfect predictor the deterministic samplers and the ancestral one arrive at the clean latent") {
  for (const auto type : {PredictionType::epsilon, PredictionType::v_prediction, PredictionType::sample})
    for (const auto spacing : {TimestepSpacing::leading, TimestepSpacing::trailing, TimestepSpacing::linspace})
      for (const int steps : {1, 2, 7, 20})
        for (const bool karras : {false, true}) {
          SchedulerConfig config;
          config.prediction_type = type;
          config.timestep_spacing = spacing;
          config.use_karras_sigmas = karras;
          CAPTURE(steps);
          CAPTURE(name_of(spacing));
          CAPTURE(name_of(type));
          const NoiseSchedule schedule(config);
          const auto euler = lpo::euler_sigmas(schedule, steps, karras).sigmas;
          CHECK(distance_from_clean(schedule, SamplerKind::euler, steps, euler) < 1e-12);
          if (!karras) CHECK(distance_from_clean(schedule, SamplerKind::euler_ancestral, steps, euler) < 1e-12);
          CHECK(distance_from_clean(schedule, SamplerKind::dpmpp_2m, steps,
                                    lpo::dpm_sigmas(schedule, steps, karras).sigmas) < 1e-12);
        }
  // DDIM and PNDM depart where the last step arrived only if the timesteps are T/S apart. PNDM adds up outputs of
  // several timesteps, and of the three only the noise is the same at all of them.
  for (const auto type : {PredictionType::epsilon, PredictionType::v_prediction})
    for (const auto spacing : {TimestepSpacing::leading, TimestepSpacing::trailing})
      for (const auto kind : {SamplerKind::ddim, SamplerKind::pndm})
        for (const int steps : {1, 2, 5, 20}) {
          if (kind == SamplerKind::pndm && type != PredictionType::epsilon) continue;
          SchedulerConfig config;
          config.prediction_type = type;
          config.timestep_spacing = spacing;
          config.set_alpha_to_one = true;
          const NoiseSchedule schedule(config);
          std::vector<double> sigmas;
          const Sampler sampler(schedule, kind, steps);
          for (const auto& step : sampler.steps())
            sigmas.push_back(std::sqrt(1 / schedule.alpha_bar(step.timestep) - 1));
          CAPTURE(steps);
          CAPTURE(name_of(kind));
          CHECK(distance_from_clean(schedule, kind, steps, sigmas) < 1e-11);
        }
}

TEST_CASE("the timesteps that Stable Diffusion users know") {
  const auto timesteps = [](const Sampler& sampler) {
    std::vector<double> told;
    for (const auto& step : sampler.steps()) told.push_back(step.timestep);
    return told;
  };
  SchedulerConfig config;
  const auto pndm = timesteps(Sampler(NoiseSchedule(config), SamplerKind::pndm, 50));
  REQUIRE(pndm.size() == 51);
  CHECK(std::vector<double>(pndm.begin(), pndm.begin() + 4) == std::vector<double>{981, 961, 961, 941});
  CHECK(pndm.back() == 1);
  CHECK(timesteps(Sampler(NoiseSchedule(config), SamplerKind::dpmpp_2m, 4)) == std::vector<double>{801, 601, 401, 201});
  CHECK(timesteps(Sampler(NoiseSchedule(config), SamplerKind::dpmpp_2m_karras, 4)) ==
        std::vector<double>{999, 687, 146, 0});
  config.timestep_spacing = TimestepSpacing::linspace;
  CHECK(timesteps(Sampler(NoiseSchedule(config), SamplerKind::euler, 5)) ==
        std::vector<double>{999, 749.25, 499.5, 249.75, 0});
  CHECK(timesteps(Sampler(NoiseSchedule(config), SamplerKind::euler_ancestral, 1)) == std::vector<double>{0});
}

TEST_CASE("where latents start, and how much a sampler remembers") {
  SchedulerConfig config;
  CHECK(Sampler(NoiseSchedule(config), SamplerKind::euler, 20).initial_scale() == 1);
  config.timestep_spacing = TimestepSpacing::trailing;  // starts at t = 999, sigma 14.6146
  const NoiseSchedule schedule(config);
  CHECK(Sampler(schedule, SamplerKind::euler, 20).initial_scale() == doctest::Approx(14.6146 / std::hypot(1, 14.6146)));
  CHECK(Sampler(schedule, SamplerKind::ddim, 20).initial_scale() == 1);
  CHECK(Sampler(schedule, SamplerKind::dpmpp_2m, 20).initial_scale() == 1);
  CHECK(Sampler(schedule, SamplerKind::euler, 20).outputs() == 1);
  CHECK(Sampler(schedule, SamplerKind::dpmpp_2m, 20).outputs() == 2);
  CHECK(Sampler(schedule, SamplerKind::dpmpp_2m, 1).outputs() == 1);
  CHECK(Sampler(schedule, SamplerKind::pndm, 20).outputs() == 4);
}

TEST_CASE("an empty batch passes through") {
  lpo::Context<Reference> context(1);
  Tensor<float, 4, Reference> x(lpo::Extents<4>{0, 1, 3, 4});
  Formula<float> formula;
  lpo::sample(context, Sampler(NoiseSchedule(), SamplerKind::pndm, 5), formula, x.view(), 1);
  CHECK(x.size() == 0);
}

TEST_CASE("settings that no sampler can take are refused") {
  SchedulerConfig config;
  const auto make = [&](SamplerKind kind, int steps) { return Sampler(NoiseSchedule(config), kind, steps); };
  for (const auto& [kind, name, diffusers_class] : lpo::detail::sampler_names) {
    CHECK_THROWS_AS(make(kind, 0), lpo::ValueError);
    CHECK_THROWS_AS(make(kind, 1001), lpo::ValueError);
  }
  config.skip_prk_steps = false;
  CHECK(error_text<lpo::ValueError>([&] { make(SamplerKind::pndm, 5); }) ==
        "[Sampler] pndm starts without Runge-Kutta steps, as Stable Diffusion does; set skip_prk_steps to true");
  config.skip_prk_steps = true;
  config.rescale_betas_zero_snr = true;
  CHECK_THROWS_AS(make(SamplerKind::pndm, 5), lpo::ValueError);
  config.timestep_spacing = TimestepSpacing::trailing;
  CHECK(
      error_text<lpo::ValueError>([&] { make(SamplerKind::ddim, 5); }) ==
      "[Sampler] ddim with 5 steps, trailing spacing and epsilon prediction cannot step from timestep 999; take fewer "
      "steps, or v_prediction where the schedule has zero terminal SNR");
  config.prediction_type = PredictionType::v_prediction;
  CHECK_NOTHROW(make(SamplerKind::ddim, 5));
  config = {};
  config.prediction_type = PredictionType::sample;
  CHECK_THROWS_AS(make(SamplerKind::pndm, 5), lpo::ValueError);
}

TEST_CASE("samplers have the names that people use") {
  for (const auto& [kind, name, diffusers_class] : lpo::detail::sampler_names) {
    CHECK(lpo::parse_sampler(name) == kind);
    CHECK(name_of(kind) == name);
    CHECK(diffusers_class_of(lpo::parse_sampler(diffusers_class)) == diffusers_class);
  }
  CHECK(lpo::parse_sampler("Euler a") == SamplerKind::euler_ancestral);
  CHECK(lpo::parse_sampler("euler_ancestral") == SamplerKind::euler_ancestral);
  CHECK(lpo::parse_sampler("DPM++ 2M Karras") == SamplerKind::dpmpp_2m_karras);
  CHECK(lpo::parse_sampler("dpmpp_2m") == SamplerKind::dpmpp_2m);
  CHECK(lpo::parse_sampler("DPMSolverMultistepScheduler") == SamplerKind::dpmpp_2m);
  CHECK(lpo::parse_sampler("PLMS") == SamplerKind::pndm);
  CHECK(error_text<lpo::ValueError>([] { lpo::parse_sampler("DPM++ SDE"); }) ==
        "[SchedulerConfig] sampler \"DPM++ SDE\" is not supported; use one of ddim, ddpm, euler, euler_a, dpm++_2m, "
        "dpm++_2m_karras, pndm");
}
