# SPDX-License-Identifier: MIT
# Libraries that lpo::lpo needs from the system. Nothing is downloaded at configure time.
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
find_package(Eigen3 3.4 REQUIRED NO_MODULE)
find_package(nlohmann_json 3.9 REQUIRED)
find_package(PNG QUIET)
find_package(JPEG QUIET)
if(LPO_MPI)
  set(MPI_CXX_SKIP_MPICXX ON)  # the C functions are enough
  find_package(MPI QUIET COMPONENTS CXX)
endif()
