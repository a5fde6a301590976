# SPDX-License-Identifier: MIT
# find_package(lpo COMPONENTS ...) of the package in PREFIX says why it does not find a component; the project is made in
# FOLDER.
cmake_minimum_required(VERSION 3.25)

function(expect components status text)
  file(REMOVE_RECURSE ${FOLDER})
  file(WRITE ${FOLDER}/CMakeLists.txt "cmake_minimum_required(VERSION 3.25)
project(components LANGUAGES CXX)
find_package(lpo REQUIRED ${components})
")
  execute_process(COMMAND ${CMAKE_COMMAND} -S ${FOLDER} -B ${FOLDER}/build -G ${GENERATOR} -DCMAKE_CXX_COMPILER=${COMPILER}
                          -DCMAKE_PREFIX_PATH=${PREFIX}
                  RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  string(REGEX REPLACE "[ \n]+" " " output "${output}")
  string(FIND "${output}" "${text}" at)
  if(NOT result EQUAL ${status} OR at EQUAL -1)
    message(SEND_ERROR "'${components}' gives ${result}: ${output}")
  endif()
endfunction()
expect("" 0 "")
expect("OPTIONAL_COMPONENTS bogus" 0 "")
expect("COMPONENTS bogus" 1 "lpo has no component bogus, only png, jpeg, mpi and cuda.")
if(NOT EXISTS ${PREFIX}/lib/cmake/lpo/lpo-cuda.cmake)
  expect("COMPONENTS cuda" 1 "this lpo was installed without cuda: configure and install it where that is found (cuda: with LPO_CUDA=ON).")
endif()
