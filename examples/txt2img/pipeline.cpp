// SPDX-License-Identifier: MIT
// One pipeline of txt2img; CMake compiles this file once for each LPO_FAMILY and LPO_STORAGE.
#include "generate.hpp"

template void txt2img::generate<examples::LPO_FAMILY, LPO_STORAGE>(const txt2img::Job&, txt2img::PictureWriter&);
