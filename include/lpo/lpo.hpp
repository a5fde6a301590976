// SPDX-License-Identifier: MIT
// Everything for programs that compute on the CPU.
#pragma once

#include <lpo/base/config.hpp>
#include <lpo/base/device.hpp>
#include <lpo/base/error.hpp>
#include <lpo/base/executor.hpp>
#include <lpo/base/extents.hpp>
#include <lpo/base/philox.hpp>
#include <lpo/base/scalar.hpp>
#include <lpo/base/torch_random.hpp>

#include <lpo/tensor/context.hpp>
#include <lpo/tensor/operators.hpp>
#include <lpo/tensor/tensor.hpp>

#include <lpo/backend/cpu/adamw.hpp>
#include <lpo/backend/cpu/attention.hpp>
#include <lpo/backend/cpu/conv2d.hpp>
#include <lpo/backend/cpu/copy.hpp>
#include <lpo/backend/cpu/cross_entropy.hpp>
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/cpu/embedding.hpp>
#include <lpo/backend/cpu/gated_product.hpp>
#include <lpo/backend/cpu/gemm.hpp>
#include <lpo/backend/cpu/normalization.hpp>
#include <lpo/backend/cpu/random.hpp>
#include <lpo/backend/cpu/reduce.hpp>
#include <lpo/backend/cpu/resample.hpp>

#include <lpo/autograd/attention.hpp>
#include <lpo/autograd/checkpoint.hpp>
#include <lpo/autograd/concat.hpp>
#include <lpo/autograd/conv2d.hpp>
#include <lpo/autograd/cross_entropy.hpp>
#include <lpo/autograd/embedding.hpp>
#include <lpo/autograd/linear.hpp>
#include <lpo/autograd/normalization.hpp>
#include <lpo/autograd/reduce.hpp>
#include <lpo/autograd/resample.hpp>
#include <lpo/autograd/tape.hpp>
#include <lpo/autograd/var.hpp>

#include <lpo/nn/keep_packed.hpp>
#include <lpo/nn/parameter.hpp>
#include <lpo/nn/parameter_store.hpp>
#include <lpo/nn/timestep_embedding.hpp>
#include <lpo/nn/unet_blocks.hpp>

#include <lpo/model/autoencoder_kl.hpp>
#include <lpo/model/clip_text.hpp>
#include <lpo/model/unet.hpp>
#include <lpo/model/vae_tiling.hpp>

#include <lpo/diffusion/ddim.hpp>
#include <lpo/diffusion/ddpm.hpp>
#include <lpo/diffusion/flow.hpp>
#include <lpo/diffusion/guidance.hpp>
#include <lpo/diffusion/noise_schedule.hpp>
#include <lpo/diffusion/sample.hpp>
#include <lpo/diffusion/sampler.hpp>
#include <lpo/diffusion/sigmas.hpp>
#include <lpo/diffusion/torch_noise.hpp>

#include <lpo/reward/latent_reward_model.hpp>
#include <lpo/reward/loss.hpp>
#include <lpo/reward/mpcf.hpp>
#include <lpo/reward/score.hpp>

#include <lpo/preference/concepts.hpp>
#include <lpo/preference/lpo_loss.hpp>
#include <lpo/preference/rollout.hpp>
#include <lpo/preference/threshold.hpp>

#include <lpo/optim/adamw.hpp>
#include <lpo/optim/clip.hpp>
#include <lpo/optim/ema.hpp>
#include <lpo/optim/schedule.hpp>


