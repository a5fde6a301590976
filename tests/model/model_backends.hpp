// SPDX-License-Identifier: MIT
// The backends that model tests run on.
#pragma once

#include <lpo/backend/cpu/attention.hpp>
#include <lpo/backend/cpu/conv2d.hpp>
#include <lpo/backend/cpu/copy.hpp>
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/cpu/embedding.hpp>
#include <lpo/backend/cpu/gemm.hpp>
#include <lpo/backend/cpu/normalization.hpp>
#include <lpo/backend/cpu/reduce.hpp>
#include <lpo/backend/cpu/resample.hpp>
#include <lpo/backend/reference/attention.hpp>
#include <lpo/backend/reference/conv2d.hpp>
#include <lpo/backend/reference/copy.hpp>
#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/embedding.hpp>
#include <lpo/backend/reference/gemm.hpp>
#include <lpo/backend/reference/normalization.hpp>
#include <lpo/backend/reference/reduce.hpp>
#include <lpo/backend/reference/resample.hpp>
